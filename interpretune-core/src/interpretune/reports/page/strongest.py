"""The strongest effects of units on units, and of components and the edges between them, as tables of a page."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from interpretune.circuits import AttributionGraphs, ComponentEdges, NodeEffects, PatchedNodes
from interpretune.circuits.results_of import results_kind
from interpretune.questions.result import Results
from interpretune.reports.page.text import number
from interpretune.store.store import AnalysisStore

N_SHOWN = 15
TEXTS = {"name": "Unit", "source": "Of", "target": "On"}
NUMBERS = {
    "eap": "EAP",
    "eap_ig": "EAP-IG",
    "weight": "Edge",
    "linear_total": "Linear total",
    "exact": "Exact",
    "mean_effect": "Mean effect",
    "mean_size": "Mean size",
    "largest": "Largest",
}
"""Columns that are shown, with their titles."""


@frozen
class StrongestTable:
    """A table.

    Attributes:
        told: What it is of, in words.
        texts: Titles of its first columns, which are texts.
        numbers: Of the others.
        lines: Its cells.
    """

    told: str
    texts: tuple[str, ...]
    numbers: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def read_strongest(store: AnalysisStore) -> Results | None:
    """What a store holds, if it is of this kind."""
    question = store.manifest.about.get("question", {})
    kind = results_kind(question.get("method", ""), "on" in question)
    return kind(store) if kind in (NodeEffects, PatchedNodes, ComponentEdges, AttributionGraphs) else None


def strongest_table(found: Any) -> StrongestTable:
    """The largest by mean size, all means over rows."""
    top = found.top(N_SHOWN)
    texts, numbers = ([name for name in names if name in top] for names in (TEXTS, NUMBERS))
    lines = (
        (*(str(line[name]) for name in texts), *(_told(line[name]) for name in numbers))
        for line in top.to_dict("records")
    )
    return StrongestTable(repr(found), tuple(map(TEXTS.get, texts)), tuple(map(NUMBERS.get, numbers)), tuple(lines))  # type: ignore[arg-type]  # they are there


def _told(value: float) -> str:
    return "" if value != value else number(float(value))
