"""Figures of latent effects; shown in a notebook, saved as files elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc
import torch
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots
from torch import Tensor

from interpretune.analysis.cache import AnalysisCache
from interpretune.analysis.direction import CORRECT, direction_of
from interpretune.analysis.finite_results import check_stored
from interpretune.comparison.result import StoreComparison
from interpretune.errors import StoreError
from interpretune.operations.objectives import LOGIT_DIFF
from interpretune.replay.effect_noise import noise_of, noise_text
from interpretune.reports.metrics import ActivationSummary, LatentMetrics, LatentTable, effect_correlations, names_with
from interpretune.store.values import LatentValues
from interpretune.system.plain_files import read_plain
from interpretune.system.whole_file import output_file

FIGURE_DIR = Path("figures")
PLOTLY = "plotly.min.js"
"""The script that all figures of a folder share."""
ELSEWHERE = "choose another folder with `figure_dir`"
LABELLED = 5
"""Latents named in an effect plot, for each sign."""


def in_notebook() -> bool:
    """Whether figures can be shown by a notebook's front end."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def show_or_save(figure: go.Figure, name: str, figure_dir: Path | None = None) -> Path | None:
    """Show a figure in a notebook, or save it as an HTML file that needs no network.

    Args:
        figure: The figure.
        name: File name without ending.
        figure_dir: Folder; None: ``figures`` in the working directory, and only where there is no notebook.

    Returns:
        The file, or None if the figure was shown.

    Raises:
        OutputError: The folder cannot be written.
    """
    if figure_dir is None and in_notebook():
        figure.show()
        return None
    folder = figure_dir or FIGURE_DIR
    path = folder / f"{name}.html"
    _write_plotly(folder / PLOTLY)
    with output_file(path, ELSEWHERE) as partial:
        partial.write_text(figure.to_html(include_plotlyjs="directory"), encoding="utf-8")
    print(f"figure: {path}")
    return path


def _write_plotly(path: Path) -> None:
    """Put plotly's script beside the figures, which are blank without; one that was cut short is written again."""
    content = get_plotlyjs().encode("utf-8")
    with suppress(OSError):
        if read_plain(path, len(content)) == content:
            return
    with output_file(path, ELSEWHERE) as partial:
        partial.write_bytes(content)


def plot_latent_effects(
    analysis_cache: AnalysisCache,
    per_batch: bool = False,
    title: str | None = None,
    figure_dir: Path | None = None,
    towards: str | int = CORRECT,
) -> list[go.Figure]:
    """Plot the effect per example of each alive latent, sorted, a panel for each latent model.

    It is the sum of a latent's effects divided by the number of all examples, whether or not the latent is active in
    them. (The ``mean effect`` of tables counts the examples in which it is.)

    Args:
        analysis_cache: Results of ``ablation`` or ``attr_patching``.
        per_batch: A figure for each batch instead of one for all.
        title: Title, and name of the file; None: what is plotted.
        figure_dir: Where to save; see ``show_or_save``.
        towards: The answer towards which effects count; see ``calculate_latent_metrics``.

    Returns:
        The figures.

    Raises:
        AnalysisError: The cache has no effects, or there is no such answer.
        NotFiniteError: Some of them are NaN.
    """
    figures = []
    for name, figure in latent_effect_figures(analysis_cache, per_batch, title, towards):
        show_or_save(figure, name, figure_dir)
        figures.append(figure)
    return figures


def latent_effect_figures(
    analysis_cache: AnalysisCache,
    per_batch: bool = False,
    title: str | None = None,
    towards: str | int = CORRECT,
) -> list[tuple[str, go.Figure]]:
    """The figures of ``plot_latent_effects``, not shown, each with a name for its file; arguments are those there."""
    names_with(analysis_cache, "effects")
    check_stored(analysis_cache, "effects")
    objective, unit = analysis_cache.objective_name, analysis_cache.unit
    direction = direction_of(towards, analysis_cache.answers, objective)
    on = "the logit difference" if objective == LOGIT_DIFF.name else objective
    title = title or f"Effect of latents on {on}"
    batches = list(analysis_cache.effects)
    if direction.label is not None:
        pairs = zip(batches, analysis_cache.orig_labels, strict=True)
        batches = [direction.of(effects, labels) for effects, labels in pairs]
    noise = noise_text(noise_of(analysis_cache.effect_noise), unit)
    groups = [[batch] for batch in batches] if per_batch else [batches]
    figures = []
    for i, group in enumerate(groups):
        suffix = direction.suffix + (f", batch {i}" if per_batch else "")
        figures.append((_file_name(title + suffix), _effects_figure(group, title + suffix, noise, unit)))
    return figures


def _effects_figure(batches: list[Mapping[str, LatentValues]], title: str, noise: str, unit: str) -> go.Figure:
    names = list(dict.fromkeys(name for batch in batches for name in batch))
    figure = make_subplots(rows=len(names), cols=1, subplot_titles=names, vertical_spacing=0.3 / max(len(names), 1))
    for row, name in enumerate(names, start=1):
        latents, effects = effects_per_example([batch[name] for batch in batches if name in batch])
        order = effects.argsort(descending=True)
        latents, effects = latents[order], effects[order]
        ends = {*range(min(LABELLED, len(order))), *range(max(0, len(order) - LABELLED), len(order))}
        figure.add_trace(
            go.Bar(
                x=list(range(len(order))),
                y=effects.tolist(),
                customdata=latents.tolist(),
                text=[f"{int(latents[i])}" if i in ends else "" for i in range(len(order))],
                textposition="outside",
                textangle=-90,
                textfont={"size": 10},
                constraintext="none",
                cliponaxis=False,
                marker={"color": effects.tolist(), "colorscale": "RdBu", "cmid": 0, "line": {"width": 0}},
                hovertemplate="latent %{customdata}<br>effect per example %{y:.4f}<extra></extra>",
            ),
            row=row,
            col=1,
        )
        figure.update_xaxes(title_text="alive latents, by effect", row=row, col=1)
        figure.update_yaxes(title_text=f"effect per example ({unit})" if unit else "effect per example", row=row, col=1)
    figure.update_layout(
        title={"text": title, "subtitle": {"text": noise}},
        showlegend=False,
        template="plotly_white",
        height=360 * len(names) + 80,
        width=1000,
        bargap=0.05,
    )
    return figure


def effects_per_example(batches: list[LatentValues]) -> tuple[Tensor, Tensor]:
    """Effects of each latent that is alive in some example, summed and divided by the number of all examples.

    Returns:
        Ids and effects per example, both ``[n]``.
    """
    ids = torch.cat([item.latents for item in batches]).unique()
    total = torch.zeros(len(ids), dtype=torch.float64)
    for item in batches:
        total.index_add_(0, torch.searchsorted(ids, item.latents), item.values.double().sum(dim=0))
    return ids, total / sum(len(item.values) for item in batches)


def latent_metrics_scatter(
    metrics1: LatentMetrics,
    metrics2: LatentMetrics,
    label1: str = "first",
    label2: str = "second",
    figure_dir: Path | None = None,
    what: str | None = None,
) -> go.Figure:
    """Plot the total effects of two analyses against each other, a panel for each latent model.

    Args:
        metrics1: Effects on the horizontal axis.
        metrics2: Effects on the vertical axis.
        label1: Name of the first analysis.
        label2: Name of the second analysis.
        figure_dir: Where to save; see ``show_or_save``.
        what: Names what is plotted on the axes; None: total effects, and towards which answer.

    Returns:
        The figure; each panel states the Pearson correlation.
    """
    correlations = effect_correlations(metrics1, metrics2)
    what = what or f"total effect{metrics1.told}{metrics1.in_units}"
    titles = [f"{name}<br>Pearson r = {r:.3f}" for name, r in correlations.items()]
    figure = make_subplots(rows=1, cols=max(len(titles), 1), subplot_titles=titles, horizontal_spacing=0.12)
    for column, name in enumerate(correlations, start=1):
        one, other = metrics1.tables[name], metrics2.tables[name]
        shared = one.latents[torch.isin(one.latents, other.latents)]
        x = one.total_effect[torch.isin(one.latents, shared)]
        y = other.total_effect[torch.isin(other.latents, shared)]
        reach = max(x.abs().max().item(), y.abs().max().item(), 1e-9) if len(shared) else 1.0
        figure.add_trace(
            go.Scatter(
                x=[-reach, reach],
                y=[-reach, reach],
                mode="lines",
                line={"color": "lightgrey", "dash": "dot"},
                hoverinfo="skip",
            ),
            row=1,
            col=column,
        )
        figure.add_trace(
            go.Scatter(
                x=x.tolist(),
                y=y.tolist(),
                customdata=shared.tolist(),
                mode="markers",
                marker={"size": 6, "opacity": 0.7, "color": "#2166ac"},
                hovertemplate="latent %{customdata}<br>" + f"{label1} %{{x:.3f}}<br>{label2} %{{y:.3f}}<extra></extra>",
            ),
            row=1,
            col=column,
        )
        figure.update_xaxes(title_text=f"{label1}: {what}", row=1, col=column)
        figure.update_yaxes(title_text=f"{label2}: {what}", row=1, col=column)
    title = f"{label1} against {label2}"
    noise = noise_text(noise_of([metrics1.effect_noise, metrics2.effect_noise]), metrics1.unit)
    figure.update_layout(
        title={"text": title, "subtitle": {"text": noise}},
        showlegend=False,
        template="plotly_white",
        height=520,
        width=520 * max(len(titles), 1),
        margin_t=110,
    )
    show_or_save(figure, _file_name(title), figure_dir)
    return figure


def _file_name(title: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())


def parity_scatter(comparison: StoreComparison, figure_dir: Path | None = None) -> go.Figure:
    """Plot the totals of each latent in two stores against each other, a panel for each latent model.

    Args:
        comparison: Of a field per latent.
        figure_dir: Where to save; None: ``figures``, or shown in a notebook.

    Returns:
        The figure; each panel states the Pearson correlation over the latents.

    Raises:
        StoreError: The comparison is not of latents, or found none.
    """
    table = comparison.latents
    if table is None or not table.num_rows:
        raise StoreError(
            f"{comparison.field} gives no totals of latents to plot. Compare a field per latent, such as effects."
        )
    what = f"total {comparison.field}{comparison.direction.suffix}"
    left, right = (_metrics(comparison, table, side) for side in ("left", "right"))
    return latent_metrics_scatter(left, right, *comparison.names, figure_dir=figure_dir, what=what)


def _metrics(comparison: StoreComparison, table: pa.Table, side: str) -> LatentMetrics:
    tables = {}
    for hook in pc.unique(table["hook"]).sort().to_pylist():
        rows = table.filter(pc.equal(table["hook"], hook)).sort_by("latent")
        totals, times = _tensor(rows, side), _tensor(rows, f"examples_{side}")
        unknown = torch.full_like(totals, torch.nan)
        tables[hook] = LatentTable(
            latents=_tensor(rows, "latent"),
            total_effect=totals,
            mean_effect=totals / times.clamp(min=1),
            mean_activation=unknown,
            num_samples_active=times,
            proportion_samples_active=times / comparison.examples,
        )
    nothing = ActivationSummary({}, {}, {}, {}, {}, comparison.examples)
    return LatentMetrics(side, tables, nothing, f"{comparison.examples} examples in both stores")


def _tensor(rows: pa.Table, name: str) -> Tensor:
    return torch.tensor(rows[name].to_numpy())
