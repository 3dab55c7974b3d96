"""Figures by name: those of core, and those that installed packages offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from interpretune.analysis.cache import AnalysisCache
from interpretune.circuits import NodeEffects
from interpretune.circuits.results_of import results_of
from interpretune.errors import AnalysisError
from interpretune.questions.result import Results
from interpretune.reports.plots import latent_effect_figures, show_or_save
from interpretune.store import AnalysisStore
from interpretune.system.offered import PLOTS


def _latent_effects(results: Any, **options: Any) -> list[go.Figure]:
    if not isinstance(results, AnalysisCache):
        raise AnalysisError(
            "The plot 'latent_effects' is of an analysis of latents; of a question, ask for 'unit_effects'."
        )
    return [figure for _, figure in latent_effect_figures(results, **options)]


def _unit_effects(results: Any, **options: Any) -> go.Figure:
    if not isinstance(results, Results):
        raise AnalysisError("The plot 'unit_effects' is of results of a question, such as effects of units.")
    drawn = results.on_objective if isinstance(results, NodeEffects) else results
    if not hasattr(drawn, "plot"):
        raise AnalysisError(
            f"The plot 'unit_effects' is of effects of units or of a lens, and {type(results).__name__} are none. "
            "Their tables are in to_pandas(); `interpretune report` makes a page of them."
        )
    figure: go.Figure = drawn.plot(**options)
    return figure


OWN: Mapping[str, Callable[..., Any]] = {"latent_effects": _latent_effects, "unit_effects": _unit_effects}


def plot(results: Any, name: str, figure_dir: Path | None = None, **options: Any) -> list[go.Figure]:
    """Make figures by name, and show them in a notebook or save them elsewhere.

    Args:
        results: Results of a question or an analysis, their store, or its folder.
        name: ``latent_effects``, ``unit_effects``, or what an installed package offers in the group
            ``interpretune.plots``.
        figure_dir: Folder for the files; None: ``figures`` in the working directory, and only where there is no
            notebook.
        **options: Of the plot.

    Returns:
        The figures.

    Raises:
        AdapterError: The package that offers the plot cannot be used.
        AnalysisError: There is no such plot, it fails, or it is of other results.
        OutputError: The folder cannot be written.
        StoreError: There are no results in the folder.
    """
    opened = opened_results(results)
    if name in OWN:
        made = OWN[name](opened, **options)
    else:
        made = PLOTS.find(name, AnalysisError).call(AnalysisError, opened, **options)
    figures = list(made) if isinstance(made, (list, tuple)) else [made]
    if not figures or not all(isinstance(figure, go.Figure) for figure in figures):
        told = ", ".join(sorted({type(figure).__name__ for figure in figures})) or "nothing"
        raise AnalysisError(f"The plot {name!r} made {told}; it must return a plotly.graph_objects.Figure, or several.")
    for i, figure in enumerate(figures):
        show_or_save(figure, name if len(figures) == 1 else f"{name}-{i}", figure_dir)
    return figures


def opened_results(results: Any) -> Any:
    """What a plot gets: results of a question, or of analyses of latents (an ``AnalysisCache``).

    Raises:
        StoreError: There are none in the folder.
    """
    store = AnalysisStore.open(results) if isinstance(results, str | Path) else results
    if not isinstance(store, AnalysisStore):
        return store
    return results_of(store) if "question" in store.manifest.about else AnalysisCache.of(store)
