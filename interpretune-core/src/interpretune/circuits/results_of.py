"""Which class reads the results of a question, of whatever method."""

from __future__ import annotations

from interpretune.circuits.component_results import ComponentEdges, PatchedNodes
from interpretune.circuits.graph_question import AttributionGraphs
from interpretune.circuits.node_effects import NodeEffects
from interpretune.errors import StoreError
from interpretune.questions.layers import LogitLens
from interpretune.questions.result import Effects, Results
from interpretune.store.store import AnalysisStore

KINDS: tuple[type[Results], ...] = (Effects, LogitLens, PatchedNodes, ComponentEdges, AttributionGraphs)


def results_kind(method: str, of_units: bool = False) -> type[Results] | None:
    """The class that reads results of a method; None where there is none.

    Args:
        method: Of the question.
        of_units: Whether effects on units are asked for, too.
    """
    if of_units:
        return NodeEffects
    return next((kind for kind in KINDS if method in kind.methods), None)


def results_of(store: AnalysisStore) -> Results:
    """The results of a question that a store holds, as what it is read as.

    Raises:
        StoreError: It holds no results of a question, or those of a method that this version does not know.
    """
    question = store.manifest.about.get("question", {})
    kind = results_kind(question.get("method", ""), "on" in question)
    if kind is None:
        told = f"a question of method {question['method']}, which nothing reads" if question else "no question"
        raise StoreError(f"{store} holds results of {told}. Install the version that wrote it, or open AnalysisStore.")
    return kind(store)
