"""``interpretune circuit``: the analyses of a file, their circuits in forty lines at most, and the page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from rich.console import Console

from interpretune.analysis import QuestionCfg
from interpretune.circuits import AttributionGraphs, ComponentEdges, NodeEffects, PatchedNodes
from interpretune.cli.report import LINES, WIDTH, plain
from interpretune.cli.reported import Reported, page_file, run_and_report
from interpretune.cli.run import RunReport, run_analyses
from interpretune.cli.run_config import RunConfig
from interpretune.errors import ConfigurationError
from interpretune.reports.page.circuit import CircuitView, Graph
from interpretune.reports.page.text import visible

NAME_WIDTH = 30


@frozen(eq=False)
class FoundCircuits:
    """What the command found."""

    reported: Reported

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        found = [_told(view) for view in self.reported.report.page.circuits]
        told: dict[str, Any] = plain({**self.reported.as_dict(), "circuits": found})
        return told

    def text(self, *, verbose: bool = False) -> str:
        """For people; ``verbose``: all nodes and edges, however long that is."""
        page, path = self.reported.report.page, self.reported.report.path
        end = f"{path} ({path.stat().st_size / 1000:,.0f} kB) shows more; it can be mailed."
        head = [*_wrapped(page.title), ""]
        room = (LINES - len(head) - 2) // max(1, len(page.circuits))
        lines = [line for view in page.circuits for line in _lines(view, 10**6 if verbose else room)]
        lines = [*head, *lines, "", end]
        return "\n".join(lines if verbose or len(lines) <= LINES else [*lines[: LINES - 1], end])


def run_circuit(config: RunConfig, page: Path, progress: Console) -> FoundCircuits | RunReport:
    """Run a file, and make the page of its circuits; of a dry run, tell what it would do.

    Raises:
        ConfigurationError: No analysis has a circuit, or the page cannot be written.
        InterpretuneError: What is wrong.
    """
    asked = [name for name, item in config.analyses.items() if isinstance(item, QuestionCfg) and item.circuit]
    if not asked:
        raise ConfigurationError(
            "No analysis of the file has a circuit. Add one to an analysis with units, whose effects are exact: "
            "`circuit: {held_out: test}`, where test is a split or other rows that chose nothing."
        )
    if config.dry_run:
        return run_analyses(config, progress)
    of_nodes = (NodeEffects, PatchedNodes, ComponentEdges, AttributionGraphs)
    questions = {name: item for name, item in config.analyses.items() if isinstance(item, QuestionCfg)}
    asked += [name for name, item in questions.items() if item.result in of_nodes]
    return FoundCircuits(run_and_report(config, page_file(page, "--output"), progress, asked))


def _told(view: CircuitView) -> dict[str, Any]:
    found, graph = view.found, view.graph({})
    parts = {name: getattr(found, name) for name in ("sufficient", "necessary", "faithfulness", "methods")}
    return {
        "of": view.of,
        "sentences": view.sentences,
        "missing": found.missing,
        **{name: item.to_pandas().to_dict("records") for name, item in parts.items() if item is not None},
        "nodes": [] if found.edges is None else found.edges.nodes().to_dict("records"),
        "edges": [] if found.edges is None else found.edges.to_pandas().to_dict("records"),
        "wrong": [] if graph is None else [[*edge.names, edge.wrong] for edge in graph.edges if edge.wrong],
    }


def _lines(view: CircuitView, room: int) -> Iterator[str]:
    """A circuit in so many lines."""
    head = [line for text in (*view.sentences, *view.found.missing) for line in _wrapped(text)]
    curves = view.curves
    if curves is not None:
        needed = curves.nodes_for(0.8).to_dict()
        told = ", ".join(f"{n if isinstance(n, int) else 'no size'} ({name})" for name, n in needed.items())
        head += _wrapped(
            f"Out of all {curves.units:,} units, circuits are 80\u00a0% faithful there with the first so many: {told}."
        )
    graph = view.graph({})
    if graph is None:
        yield from head[:room]
        return
    wrong = sum(bool(edge.wrong) for edge in graph.edges)
    end = _wrapped(
        f"The gradient is wrong in {wrong} of {len(graph.edges)} effects (marked by !: another sign, or off by more "
        "than half)."
    )
    left = max(2, room - len(head) - len(end) - 6)
    n_nodes = min(len(graph.nodes), max(1, left // 2))
    yield from (*head, "", *_nodes(graph, n_nodes), "", *_edges(graph, left - n_nodes), *end)


def _nodes(graph: Graph, n: int) -> list[str]:
    from tabulate import tabulate

    rows = [
        {
            "unit": ("* " if node.chosen else "  ") + _name(node.name),
            "effect": node.effect,
            "mean size": node.size,
            "gradient": node.approximate,
        }
        for node in sorted(graph.nodes, key=lambda node: not node.chosen)[:n]
    ]
    return tabulate(rows, headers="keys", tablefmt="plain", disable_numparse=True).splitlines()


def _edges(graph: Graph, n: int) -> list[str]:
    from tabulate import tabulate

    inner = [edge for edge in graph.edges if edge.target < len(graph.nodes)]
    rows = [
        {
            "of": _name(edge.names[0]),
            "on": _name(edge.names[1]),
            "exact": edge.exact.partition(" (")[0],
            "gradient": edge.approximate + ("  !" if edge.wrong else ""),
        }
        for edge in inner[:n]
    ]
    return tabulate(rows, headers="keys", tablefmt="plain", disable_numparse=True).splitlines()


def _wrapped(text: str) -> Sequence[str]:
    return textwrap.wrap(visible(text), WIDTH) or [""]


def _name(text: str) -> str:
    text = visible(text)
    return text if len(text) <= NAME_WIDTH else f"…{text[1 - NAME_WIDTH :]}"
