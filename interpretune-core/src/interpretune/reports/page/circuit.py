"""The circuit of a question on its page: the graph of its units, sentences about sets, and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import frozen

from interpretune.circuits import Circuit, CircuitEdges, Faithfulness, SmallestSet
from interpretune.reports.page.text import interval, number, percent, percents, set_to

WIDTH, IN_LINE = 440, 4
"""Of the graph, and most nodes beside each other."""
BOX_WIDTH, BOX_HEIGHT, LINE = 98, 34, 84
N_EDGES, N_SHOWN = 60, 15
"""Edges that are drawn, and those in the table."""
SMALL = 0.05
"""Part of the largest effect below which approximations are not called wrong."""
Anchors = Mapping[tuple[int, str, int], str]


@frozen
class Node:
    """A unit in the graph: its place, exact effect on the objective in words, and its mean size; its card."""

    name: str
    label: str
    x: float
    y: float
    chosen: bool
    effect: str
    size: str
    approximate: str
    sign: str
    card: str | None


@frozen
class Edge:
    """An edge in the graph, by the numbers of its nodes, the last of which is the objective; or a line of the table."""

    source: int
    target: int
    names: tuple[str, str]
    exact: str
    approximate: str
    wrong: str
    sign: str
    path: str
    width: float


@frozen
class Graph:
    """What is drawn.

    Attributes:
        nodes: The units.
        edges: The strongest edges between them, and those to the objective, strongest first.
        left_out: How many edges are not drawn.
        height: Of the drawing.
        objective: What the node at the top is called.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    left_out: int
    height: float
    objective: str

    @property
    def table(self) -> Sequence[Edge]:
        """The strongest edges."""
        return self.edges[:N_SHOWN]

    def of_node(self, number: int) -> list[Edge]:
        """The edges of a node that are drawn."""
        return [edge for edge in self.edges if number in (edge.source, edge.target)]


def wrong_words(exact: float, approximate: float, largest: float) -> str:
    """How an approximation is wrong, in words; nothing where it is not, or where effects are small."""
    if math.isnan(approximate) or max(abs(exact), abs(approximate)) < SMALL * largest:
        return ""
    if exact * approximate < 0:
        return "other sign"
    return "off by more than half" if abs(approximate - exact) > abs(exact) / 2 else ""


def graph_of(edges: CircuitEdges, chosen: Sequence[str], store: int, anchors: Anchors) -> Graph:
    """The graph of units by layer upwards, under the objective."""
    lines = _lines(edges.heights)
    height = LINE * (len(lines) + 1)
    places: dict[int, tuple[float, float]] = {len(edges.units): (WIDTH / 2, BOX_HEIGHT / 2 + 4)}
    for i, line in enumerate(lines):
        y = height - LINE / 2 - LINE * i
        shift = (WIDTH / len(line) / 4 if i % 2 else 0) if len(line) < IN_LINE else 0
        for k, node in enumerate(line):
            places[node] = ((k + 0.5) * WIDTH / len(line) + shift, y)
    effects, slopes = edges.node_effect, edges.node_gradient
    nodes = tuple(
        Node(
            name,
            _label(edges, i),
            round(places[i][0], 1),
            round(places[i][1], 1),
            name in chosen,
            _exact(effects[:, i]),
            number(float(edges.node_size[i])),
            _approximate(slopes[i]),
            "up" if effects[0, i] >= 0 else "down",
            anchors.get((store, edges.sets[i], edges.ids[i])),
        )
        for i, name in enumerate(edges.units)
    )
    all_edges = _edges(edges, places)
    return Graph(nodes, tuple(all_edges[:N_EDGES]), max(0, len(all_edges) - N_EDGES), round(height, 1), edges.objective)


def _lines(heights: Sequence[int]) -> list[list[int]]:
    """Nodes of equal height beside each other, a few in a line, the lowest first."""
    lines = []
    for height in sorted({*heights}):
        same = [i for i, item in enumerate(heights) if item == height]
        lines += [same[k : k + IN_LINE] for k in range(0, len(same), IN_LINE)]
    return lines


def _edges(edges: CircuitEdges, places: Mapping[int, tuple[float, float]]) -> list[Edge]:
    """All of them, strongest first: by their part of the largest on targets that are counted alike."""
    top, names = len(edges.units), (*edges.units, edges.objective)
    many = np.array([edges.kinds[target] in ("head", "vector") for target in edges.targets], dtype=bool)
    found: list[tuple[float, Edge]] = []
    groups: list[tuple[Any, ...]] = [(range(top), [top] * top, edges.node_effect, edges.node_gradient)]
    for which in (many, ~many):
        ends = [[item[i] for i in np.flatnonzero(which)] for item in (edges.sources, edges.targets)]
        groups.append((*ends, edges.effect[:, which], edges.gradient[which]))
    for sources, targets, exact, slopes in groups:
        sizes = np.nan_to_num(np.abs(exact[0]))
        largest = float(sizes.max(initial=0.0))
        for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
            part = sizes[i] / largest if largest else 0.0
            edge = Edge(
                source,
                target,
                (names[source], names[target]),
                _exact(exact[:, i]),
                _approximate(slopes[i]),
                wrong_words(exact[0, i], slopes[i], largest),
                "up" if exact[0, i] >= 0 else "down",
                _path(places[source], places[target]),
                round(0.6 + 4.4 * part, 2),
            )
            found.append((part, edge))
    return [edge for _, edge in sorted(found, key=lambda item: -item[0])]


def _path(source: tuple[float, float], target: tuple[float, float]) -> str:
    (x, y), (x2, y2) = (source[0], source[1] - BOX_HEIGHT / 2), (target[0], target[1] + BOX_HEIGHT / 2)
    bend = max(12.0, (y - y2) / 2)
    return f"M{x:.1f} {y:.1f}C{x:.1f} {y - bend:.1f} {x2:.1f} {y2 + bend:.1f} {x2:.1f} {y2:.1f}"


def _label(edges: CircuitEdges, i: int) -> str:
    layer = f"L{edges.layers[i]} " if edges.layers[i] >= 0 else ""
    return f"{layer}{edges.kinds[i][:8]} {edges.ids[i]}"


def _exact(effect: Any) -> str:
    mean, low, high = map(float, effect)
    return f"{number(mean)} ({interval(low, high)})"


def _approximate(value: float) -> str:
    return "none" if math.isnan(value) else number(float(value))


def set_sentence(found: SmallestSet, what: str) -> str:
    """What a smallest set does, with its figures on held-out rows.

    Args:
        found: The set.
        what: The objective in words.
    """
    n, pool, told = len(found.units), len(found.pool), found.shares()
    names = ", ".join(found.units[:3]) + (f" and {n - 3} more" if n > 3 else "")
    one = n == 1
    if found.kind == "sufficient":
        others = f"with the other {pool - n}, each {set_to(found.value)}, " if pool > n else ""
        start = f"Of the {pool} top units, {n} {'is' if one else 'are'} enough ({names}): {others}"
        verb = f"{'it keeps' if one else 'they keep'}"
    else:
        start = f"Of the {pool} top units, {n} {'is' if one else 'are'} needed ({names}): each {set_to(found.value)}, "
        verb = f"{'it takes' if one else 'they take'} away"
    if not found.reached:
        start = start.replace(" enough", " what comes closest").replace(" needed", " what comes closest")
    line, held = told.iloc[-1], found.held_out.shape[1] > 0
    share = f"{percent(line.share)} (95\u00a0% interval {percents(line.low, line.high)})"
    where = f"{int(line.n):,} held-out rows" if held else "the rows that chose them; other rows were not tested"
    sentence = f"{start}{verb} {share} of what all {pool} do to {what}, on {where}."
    return sentence if found.reached else f"{sentence} {percent(found.share)} is not reached."


@frozen
class CircuitView:
    """The circuit of one store.

    Attributes:
        store: Its number.
        of: Its units in words.
        found: The circuit.
        what: The objective in words.
        unit: What it is counted in.
    """

    store: int
    of: str
    found: Circuit
    what: str
    unit: str

    @property
    def sentences(self) -> list[str]:
        """What the sets do, and why parts are not there."""
        sets = [item for item in (self.found.sufficient, self.found.necessary) if item is not None]
        return [set_sentence(item, self.what) for item in sets]

    @property
    def chosen(self) -> tuple[str, ...]:
        """The units of the circuit, which the graph marks."""
        found = self.found.sufficient or self.found.necessary
        return found.units if found else ()

    def graph(self, anchors: Anchors) -> Graph | None:
        """The graph."""
        edges = self.found.edges
        return graph_of(edges, self.chosen, self.store, anchors) if edges is not None and edges.units else None

    @property
    def methods(self) -> list[dict[str, str]]:
        """Lines of the table of judged methods; the curves say how many units are needed."""
        found, curves = self.found.methods, self.found.faithfulness
        if found is None:
            return []
        needed = {} if curves is None or curves.undefined else curves.nodes_for(0.8).to_dict()
        lines = []
        for line in found.to_pandas().itertuples(index=False):
            count = needed.get(line.method)
            lines.append(
                {
                    "method": str(line.method).replace("_", " "),
                    "signs": percent(line.sign_errors),
                    "ranks": number(line.rank_correlation),
                    "top": percent(line.top_overlap),
                    "needed": f"{count:,}" if isinstance(count, int) else "not reached",
                }
            )
        return lines

    @property
    def curves(self) -> Faithfulness | None:
        """The curves, where shares are defined."""
        found = self.found.faithfulness
        return None if found is None or found.undefined else found

    @property
    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Shapley values and pairs: a caption, heads, and lines."""
        tables = []
        if self.found.shapley is not None:
            lines = self.found.shapley.to_pandas().head(N_SHOWN)
            cells = [
                [x.unit, number(x.shapley), number(x.standard_error), number(x.effect)]
                for x in lines.itertuples(index=False)
            ]
            tables.append(("Shapley values", ["Unit", "Value", "Standard error", "Effect alone"], cells))
        if self.found.pairs is not None:
            lines = self.found.pairs.to_pandas().head(N_SHOWN)
            cells = [
                [f"{x.first} and {x.second}", number(x.effect), number(x.sum_of_single), number(x.interaction)]
                for x in lines.itertuples(index=False)
            ]
            tables.append(("Pairs", ["Pair", "Together", "Sum alone", "Interaction"], cells))
        return tables
