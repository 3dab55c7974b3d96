"""The totals of two stores against each other, as a figure."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from interpretune.comparison.result import StoreComparison
from interpretune.errors import StoreError
from interpretune.reports.metrics import ActivationSummary, LatentMetrics, LatentTable
from interpretune.reports.plots import latent_metrics_scatter


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
