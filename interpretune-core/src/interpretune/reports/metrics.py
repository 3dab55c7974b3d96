"""Summaries over examples: correct answers, activations, and effects of latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from attrs import fields, frozen
from torch import Tensor

from interpretune.analysis.cache import AnalysisCache
from interpretune.analysis.direction import CORRECT, TOWARDS_CORRECT, Direction, direction_of
from interpretune.analysis.finite_results import check_stored
from interpretune.analysis.modes import AnalysisMode
from interpretune.errors import AnalysisError
from interpretune.operations.objectives import LOGIT_DIFF
from interpretune.replay.effect_noise import noise_of, warn_of_noise
from interpretune.system.html_table import html_table

if TYPE_CHECKING:
    import pandas as pd

CONTEXTS_KEPT = 3
"""Prompts kept for each latent: those in which it is most active."""
SHOWN = 10
"""Latents that a notebook shows of an analysis."""


class PredSummary(NamedTuple):
    """How many answers are correct.

    ``batch_predictions`` has the predicted labels ``[batch]`` of each batch. For ``ablation`` they are those of the
    clean run with latent models, from which every ablation starts.
    """

    total_correct: int
    percentage_correct: float
    batch_predictions: list[Tensor]


def compute_correct(analysis_cache: AnalysisCache, mode: AnalysisMode | None = None) -> PredSummary:
    """Count correct answers.

    Args:
        analysis_cache: Results of any mode.
        mode: Names the analysis in the error.

    Raises:
        AnalysisError: The cache is empty.
        NotFiniteError: It holds logit differences, or numbers in their place, that are NaN.
    """
    if not analysis_cache.batches:
        raise AnalysisError(f"The cache of {mode or 'the analysis'} is empty: run the analysis first.")
    for name in ("logit_diffs", "objective"):
        check_stored(analysis_cache, name)
    predictions: list[Tensor] = analysis_cache.preds
    labels = torch.cat(analysis_cache.orig_labels)
    correct = int((torch.cat(predictions) == labels).sum())
    return PredSummary(correct, 100 * correct / len(labels), predictions)


@frozen(eq=False)
class Context:
    """A prompt in which a latent is active.

    Attributes:
        example: Index of the example in the analysis.
        activation: Highest activation in the prompt.
        position: Its position, counted without padding.
        tokens: Real tokens of the prompt, ``[pos]``, where the analysis saved them.
        pieces: Their texts, where the analysis knew the tokenizer.
    """

    example: int
    activation: float
    position: int
    tokens: Tensor | None
    pieces: Sequence[str] | None


@frozen(eq=False)
class ActivationSummary:
    """Activations of latents at the answer position, over all examples, by activation name.

    Attributes:
        latents: Ids of the latents that are ever alive, ascending, ``[n]``.
        mean_activation: Mean over the examples in which the latent is active, ``[n]``.
        num_samples_active: Number of such examples, ``[n]``.
        contexts: For each latent the prompts in which it is most active.
        dashboard_urls: Published page of each latent with the placeholder ``{latent}``, where there is one.
        num_samples: Number of examples.
    """

    latents: Mapping[str, Tensor]
    mean_activation: Mapping[str, Tensor]
    num_samples_active: Mapping[str, Tensor]
    contexts: Mapping[str, Mapping[int, Sequence[Context]]]
    dashboard_urls: Mapping[str, str]
    num_samples: int


def calc_activation_summary(analysis_cache: AnalysisCache) -> ActivationSummary:
    """Summarise activations over the examples of an analysis with latent models.

    Raises:
        AnalysisError: The cache has no latent activations.
        NotFiniteError: Some of them are NaN.
    """
    names = names_with(analysis_cache, "activations")
    check_stored(analysis_cache, "activations")
    sums = {name: _LatentSums(2) for name in names}
    for batch in analysis_cache.activations:
        for name, item in batch.items():
            sums[name].add(item.latents, item.values, item.values != 0)
    latents = {name: item.latents for name, item in sums.items()}
    counts = {name: item.sums[1].long() for name, item in sums.items()}
    means = {name: item.sums[0] / item.sums[1].clamp(min=1) for name, item in sums.items()}
    contexts = _contexts(analysis_cache, names)
    urls = {name: url for batch in analysis_cache.dashboard_urls for name, url in batch.items()}
    total_examples = sum(len(labels) for labels in analysis_cache.orig_labels)
    return ActivationSummary(latents, means, counts, contexts, urls, total_examples)


@frozen(eq=False)
class LatentTable:
    """Effects of the latents of one latent model; every column is ``[n]``.

    Attributes:
        latents: Ids of the latents that are alive in some example, ascending.
        total_effect: Sum of the effects over the selected examples, in units of the objective.
        mean_effect: The same divided by the number of selected examples in which the latent is active. (Divided by the
            number of all examples it is the ``effect per example`` of ``plot_latent_effects``.)
        mean_activation: Mean activation over the examples in which the latent is active.
        num_samples_active: Number of examples in which the latent is active.
        proportion_samples_active: The same divided by the number of examples.
    """

    latents: Tensor
    total_effect: Tensor
    mean_effect: Tensor
    mean_activation: Tensor
    num_samples_active: Tensor
    proportion_samples_active: Tensor


@frozen(eq=False)
class LatentMetrics:
    """Effects of latents over the selected examples of one analysis.

    Attributes:
        run_name: Name of the analysis, for titles.
        tables: One table for each latent model, by activation name.
        summary: The activations that belong to it.
        selection: Which examples the effects were taken from, in words.
        direction: The answer towards which effects count.
        effect_noise: What rounding alone does to an effect on one example (standard deviation), as it was measured in
            the run; None where it was not.
        objective: What effects are measured by.
        unit: What that is counted in.
    """

    run_name: str
    tables: Mapping[str, LatentTable]
    summary: ActivationSummary
    selection: str
    direction: Direction = TOWARDS_CORRECT
    effect_noise: float | None = None
    objective: str = LOGIT_DIFF.name
    unit: str = LOGIT_DIFF.unit

    @property
    def told(self) -> str:
        """What titles add of objective and direction: nothing for the difference of logits of the correct answer."""
        return of_objective(self.objective) + self.direction.suffix

    @property
    def in_units(self) -> str:
        """The unit in brackets, where there is one."""
        return f" ({self.unit})" if self.unit else ""

    def to_pandas(self) -> pd.DataFrame:
        """A line for each latent: ``hook, latent`` and the columns of ``LatentTable``, by the size of total effects."""
        import pandas as pd

        columns = [item.name for item in fields(LatentTable)]
        rows = [
            (name, *row)
            for name, table in self.tables.items()
            for row in zip(*(getattr(table, column).tolist() for column in columns), strict=True)
        ]
        found = pd.DataFrame(rows, columns=["hook", "latent", *columns[1:]])
        return found.sort_values("total_effect", key=abs, ascending=False, kind="stable", ignore_index=True)

    def _repr_html_(self) -> str:
        title = f"{self.run_name} effects{self.told}{self.in_units}, {self.selection}".strip()
        frame = self.to_pandas().rename(columns=lambda name: name.replace("_", " "))
        return html_table(title, frame.to_dict("records"), SHOWN)


def of_objective(objective: str) -> str:
    """What titles of effects add for an objective: nothing for the difference of two logits."""
    return "" if objective == LOGIT_DIFF.name else f" on {objective}"


def calculate_latent_metrics(
    analysis_cache: AnalysisCache,
    pred_summ: PredSummary | None = None,
    activation_summary: ActivationSummary | None = None,
    filter_by_correct: bool = True,
    run_name: str = "",
    towards: str | int = CORRECT,
) -> LatentMetrics:
    """Sum the effects of each latent over examples.

    Args:
        analysis_cache: Results of ``ablation`` or ``attr_patching``.
        pred_summ: Predictions that decide which examples are correct.
        activation_summary: Activations to report; None: those of ``analysis_cache``.
        filter_by_correct: Use the correctly answered examples only. Without ``pred_summ`` all are used.
        run_name: Name of the analysis, for titles.
        towards: The answer towards which effects count: ``"correct"``, each example's own correct answer, or one
            answer for all examples, by its label or its word. A latent that pushes towards one answer whatever the
            example says has a total near 0 in the first way of counting and a large one in the second.

    Raises:
        AnalysisError: The cache has no effects, or there is no such answer.
        NotFiniteError: Some of them are NaN.
    """
    direction = direction_of(towards, analysis_cache.answers, analysis_cache.objective_name)
    names = names_with(analysis_cache, "effects")
    check_stored(analysis_cache, "effects")
    summary = activation_summary or calc_activation_summary(analysis_cache)
    chosen = [torch.ones_like(labels, dtype=torch.bool) for labels in analysis_cache.orig_labels]
    if filter_by_correct and pred_summ is not None:
        pairs = zip(pred_summ.batch_predictions, analysis_cache.orig_labels, strict=True)
        chosen = [predictions == labels for predictions, labels in pairs]
    sums = {name: _LatentSums(2) for name in names}
    largest = 0.0
    columns = (analysis_cache.effects, analysis_cache.activations, analysis_cache.orig_labels)
    for keep, effects, activations, labels in zip(chosen, *columns, strict=True):
        for name, item in direction.of(effects, labels).items():
            sums[name].add(item.latents, item.values[keep], activations[name].values[keep] != 0)
            if item.values[keep].numel():
                largest = max(largest, item.values[keep].abs().max().item())
    noise = noise_of(analysis_cache.effect_noise)
    warn_of_noise(noise, largest, analysis_cache.unit)
    tables = {}
    for name in names:
        ids, (total, times) = sums[name].latents, sums[name].sums
        counts = _lookup(summary.latents[name], summary.num_samples_active[name], ids)
        tables[name] = LatentTable(
            latents=ids,
            total_effect=total,
            mean_effect=total / times.clamp(min=1),
            mean_activation=_lookup(summary.latents[name], summary.mean_activation[name], ids),
            num_samples_active=counts,
            proportion_samples_active=counts / max(summary.num_samples, 1),
        )
    used = sum(int(keep.sum()) for keep in chosen)
    of = sum(len(keep) for keep in chosen)
    what = "correctly answered examples" if filter_by_correct and pred_summ is not None else "examples"
    selection, measured = f"{used} {what} of {of}", (analysis_cache.objective_name, analysis_cache.unit)
    return LatentMetrics(run_name, tables, summary, selection, direction, noise, *measured)


def effect_correlations(first: LatentMetrics, second: LatentMetrics) -> dict[str, float]:
    """Pearson correlation of two analyses' total effects, over the latents that both know, by activation name.

    Raises:
        AnalysisError: They count effects towards different answers, or on different objectives.
    """
    if first.objective != second.objective:
        raise AnalysisError(
            f"Effects on {first.objective} are not compared with effects on {second.objective}: run both analyses with "
            "the same AnalysisCfg(objective=...)."
        )
    if first.direction != second.direction:
        raise AnalysisError(
            f"Effects towards {first.direction.name} are not compared with effects towards {second.direction.name}: "
            "calculate both metrics with the same towards=..."
        )
    found = {}
    for name, one in first.tables.items():
        if name not in second.tables:
            continue
        other = second.tables[name]
        shared = one.latents[torch.isin(one.latents, other.latents)]
        pair = torch.stack(
            [
                _lookup(one.latents, one.total_effect, shared).double(),
                _lookup(other.latents, other.total_effect, shared).double(),
            ]
        )
        found[name] = torch.corrcoef(pair)[0, 1].item() if len(shared) > 1 else float("nan")
    return found


def names_with(analysis_cache: AnalysisCache, what: str) -> list[str]:
    """Activation names for which a cache has ``activations`` or ``effects``.

    Raises:
        AnalysisError: There are none; the message says which analyses give them.
    """
    names = list(dict.fromkeys(name for batch in getattr(analysis_cache, what) for name in batch))
    if not names:
        raise AnalysisError(
            f"The cache has no {what} of latents. Run an analysis that gives them"
            + (" (ablation or attr_patching)." if what == "effects" else " (any mode but clean_no_sae).")
        )
    return names


class _LatentSums:
    """Sums in float64 for each latent that was ever alive, batch by batch; the cost follows the alive latents.

    Attributes:
        latents: Ids, ascending, ``[n]``.
        sums: ``[columns, n]``.
    """

    def __init__(self, columns: int) -> None:
        self.latents = torch.empty(0, dtype=torch.long)
        self.sums = torch.zeros(columns, 0, dtype=torch.float64)

    def add(self, latents: Tensor, *columns: Tensor) -> None:
        """Add a batch: ids ``[n_alive]`` and a value for each example and latent, ``[batch, n_alive]``."""
        merged, where = torch.cat([self.latents, latents]).unique(return_inverse=True)
        new = torch.stack([column.double().sum(dim=0) for column in columns])
        sums = self.sums.new_zeros(len(columns), len(merged))
        self.sums = sums.index_add_(1, where, torch.cat([self.sums, new], dim=1))
        self.latents = merged


def _lookup(ids: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """Values of the wanted ids; 0 for an id that is not there."""
    if len(ids) == 0:
        return values.new_zeros(len(wanted))
    places = torch.searchsorted(ids, wanted).clamp(max=len(ids) - 1)
    return torch.where(ids[places] == wanted, values[places], torch.zeros_like(values[places]))


def _contexts(analysis_cache: AnalysisCache, names: Sequence[str]) -> dict[str, dict[int, list[Context]]]:
    """For each latent model and latent the prompts in which it is most active anywhere."""
    found: dict[str, dict[int, list[Context]]] = {name: {} for name in names}
    first = 0
    for batch in analysis_cache.batches:
        for name, peaks in batch.peaks.items():
            known = found[name]
            for column, latent in enumerate(peaks.latents.tolist()):
                top = peaks.values[:, column].topk(min(CONTEXTS_KEPT, len(peaks.values)))
                contexts = known.setdefault(latent, [])
                for value, row in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                    if value <= 0 or (len(contexts) == CONTEXTS_KEPT and value <= contexts[-1].activation):
                        continue
                    tokens = batch.tokens[row] if batch.tokens is not None else None
                    pieces = batch.pieces[row] if batch.pieces is not None else None
                    position = int(peaks.positions[row, column])
                    contexts.append(Context(first + row, value, position, tokens, pieces))
                    contexts.sort(key=lambda item: item.activation, reverse=True)
                    del contexts[CONTEXTS_KEPT:]
        first += len(batch)
    return {name: {latent: kept for latent, kept in known.items() if kept} for name, known in found.items()}
