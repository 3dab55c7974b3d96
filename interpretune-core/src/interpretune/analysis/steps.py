"""The two calls of an analysis step: run the model as the mode says, then turn logits into differences and effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor
from torch.nn import functional

from interpretune.analysis.batch import AnalysisBatch, LatentValues, Peaks, alive_at
from interpretune.analysis.inputs import ModelInputs
from interpretune.analysis.latent_model import activation_name
from interpretune.analysis.modes import AnalysisCfg, AnalysisMode
from interpretune.analysis.replay.gradients import attribute
from interpretune.analysis.replay.prefill import LatentObserver, Prefill
from interpretune.analysis.replay.prefill import prefill as run_once
from interpretune.analysis.replay.rows import LatentRows
from interpretune.errors import AnalysisError, DataError

if TYPE_CHECKING:
    from interpretune.module import ITModule


def run_with_ctx(
    module: ITModule, analysis_batch: AnalysisBatch, analysis_cfg: AnalysisCfg, batch: Mapping[str, Any], batch_idx: int
) -> None:
    """Run the passes of the configured mode on one batch and fill ``analysis_batch`` with what they give.

    Args:
        module: A composed module.
        analysis_batch: Has the labels; receives answer positions, logits, activations and gradients.
        analysis_cfg: The mode and its inputs.
        batch: Tokens and attention mask; labels are ignored.
        batch_idx: Index into the per-batch inputs of the configuration.

    Raises:
        AnalysisError: The mode needs latent models and the session has none.
        DataError: The batch has no attention mask.
    """
    if analysis_cfg.mode.splices and not module.latent_models:
        raise AnalysisError(
            f"The mode {analysis_cfg.mode} needs latent models and this session has none. Stack an adapter that loads "
            "them and configure it, or pass your own as ITConfig(latent_models=[...])."
        )
    with torch.inference_mode(mode=False):  # trainers test in inference mode, whose tensors know no gradients
        inputs = ModelInputs.from_batch({name: _ordinary(value) for name, value in batch.items()})
        analysis_batch.labels = _ordinary(analysis_batch.labels)
        analysis_batch.orig_labels = _ordinary(analysis_batch.orig_labels)
        analysis_batch.answer_indices = _indices(inputs, analysis_cfg, batch_idx)
        if analysis_cfg.alive_latents is not None:
            analysis_batch.alive_latents = _entry(analysis_cfg.alive_latents, batch_idx, "alive_latents")
        module._hook.it_run_analysis(
            module=module, analysis_batch=analysis_batch, analysis_cfg=analysis_cfg, inputs=inputs
        )


def loss_and_logit_diffs(
    module: ITModule, analysis_batch: AnalysisBatch, analysis_cfg: AnalysisCfg, batch: Mapping[str, Any], batch_idx: int
) -> None:
    """Turn what ``run_with_ctx`` left into loss, predictions, logit differences and effects.

    Args:
        module: Its ``standardize_logits`` reduces logits to the answers; its ``loss_fn``, where it has one, is used.
        analysis_batch: Filled in place.
        analysis_cfg: The mode, and clean logit differences for ``ablation``.
        batch: Not used; present so that all parts of a step are called alike.
        batch_idx: Index into ``analysis_cfg.base_logit_diffs``.
    """
    logits = analysis_batch.answer_logits
    if logits is None:
        raise AnalysisError("There are no answer logits: call run_with_ctx before loss_and_logit_diffs.")
    labels = analysis_batch.orig_labels
    answers = module.standardize_logits(logits)[:, -1, :]
    loss_fn = getattr(module, "loss_fn", functional.cross_entropy)
    analysis_batch.loss = loss_fn(logits, analysis_batch.labels)
    analysis_batch.preds = answers.argmax(dim=-1)
    analysis_batch.logit_diffs = logit_differences(answers, labels)
    if analysis_cfg.mode is AnalysisMode.ablation:
        clean = analysis_batch.logit_diffs
        if analysis_cfg.base_logit_diffs is not None:
            clean = _entry(analysis_cfg.base_logit_diffs, batch_idx, "base_logit_diffs").to(logits.device)
        analysis_batch.effects = {
            name: _ablation_effects(analysis_batch.activations[name], ablated, clean, labels)
            for name, ablated in analysis_batch.ablated_logits.items()
        }
    elif analysis_cfg.mode is AnalysisMode.attr_patching:
        analysis_batch.effects = {
            name: LatentValues(item.latents, item.values * analysis_batch.gradients[name].values, item.d_sae)
            for name, item in analysis_batch.activations.items()
        }


def logit_differences(answers: Tensor, labels: Tensor) -> Tensor:
    """Logit of the correct answer minus that of the other.

    Args:
        answers: Logits of the two answers, ``[..., 2]``.
        labels: Correct answer, broadcastable to ``[...]``.

    Returns:
        ``[...]``, in logits.

    Raises:
        DataError: There are not two answers.
    """
    if answers.shape[-1] != 2:
        raise DataError(f"A logit difference is defined for two answers; this task has {answers.shape[-1]}.")
    labels = labels.expand(answers.shape[:-1]).unsqueeze(-1)
    return (answers.gather(-1, labels) - answers.gather(-1, 1 - labels)).squeeze(-1)


def run_mode(module: ITModule, analysis_batch: AnalysisBatch, analysis_cfg: AnalysisCfg, inputs: ModelInputs) -> None:
    """The passes of the four modes; core's answer to ``it_run_analysis``."""
    mode = analysis_cfg.mode
    backend, latent_models = module.backend, list(module.latent_models)
    if mode is AnalysisMode.clean_no_sae:
        with torch.no_grad():
            analysis_batch.answer_logits = backend.run(inputs)
        return
    names = analysis_cfg.choose_names([activation_name(item) for item in latent_models])
    highest: dict[str, _Highest] = {}
    observers = {name: _peak_finder(name, len(inputs), highest) for name in names}
    if mode is AnalysisMode.clean_w_sae:
        clean = run_once(backend, inputs, latent_models, observers=observers)
    else:
        clean = backend.prefill(inputs, latent_models, observers=observers, self_check=analysis_cfg.self_check)
    _store(module, analysis_batch, clean, highest)
    if mode is AnalysisMode.attr_patching:
        analysis_batch.gradients = _gradients(module, analysis_batch, clean)
    elif mode is AnalysisMode.ablation:
        analysis_batch.ablated_logits = {
            name: _ablate(module, analysis_batch, clean, name, analysis_cfg.row_budget) for name in names
        }


@frozen(eq=False)
class _Highest:
    """The highest activation of every latent in each prompt, and its position counted without padding."""

    values: Tensor
    positions: Tensor

    def of(self, latents: Tensor) -> Peaks:
        """Those of some latents."""
        return Peaks(latents, self.values[:, latents], self.positions[:, latents])


def _peak_finder(name: str, batch: int, highest: dict[str, _Highest]) -> LatentObserver:
    """Notes where latents are most active in each prompt."""

    def find(latents: Tensor, inputs: ModelInputs, examples: Tensor) -> None:
        if name not in highest:
            shape = (batch, latents.shape[-1])
            highest[name] = _Highest(latents.new_zeros(shape), examples.new_zeros(shape))
        for row, example in enumerate(examples.tolist()):
            real = inputs.attention_mask[row].nonzero().flatten()
            values, where = latents[row, real].max(dim=0)
            highest[name].values[example] = values
            highest[name].positions[example] = real[where] - real[0]

    return find


def _store(module: ITModule, analysis_batch: AnalysisBatch, clean: Prefill, highest: Mapping[str, _Highest]) -> None:
    """Keep what the clean run says of the alive latents: those already named, or those active at some answer."""
    named = analysis_batch.alive_latents
    alive = {
        name: named[name].to(clean.logits.device) if name in named else alive_at(clean.latents[name])
        for name in highest
    }
    analysis_batch.answer_logits = clean.logits
    analysis_batch.alive_latents = alive
    analysis_batch.activations = {name: _of_alive(clean.latents[name], latents) for name, latents in alive.items()}
    analysis_batch.peaks = {name: highest[name].of(latents) for name, latents in alive.items()}
    analysis_batch.dashboard_urls = {
        activation_name(item): url for item in module.latent_models if (url := item.dashboard_url())
    }


def _of_alive(values: Tensor, latents: Tensor) -> LatentValues:
    return LatentValues(latents, values[:, latents], values.shape[-1])


def _answers(module: ITModule, logits: Tensor, columns: Tensor | None) -> Tensor:
    """Logits of the answers, ``[n, num_labels]``, of all logits or of the columns that were computed."""
    return module.standardize_logits(logits)[:, -1, :] if columns is None else logits


def _gradients(module: ITModule, analysis_batch: AnalysisBatch, clean: Prefill) -> dict[str, LatentValues]:
    """Gradients of the summed logit differences at the answer position."""
    labels, columns, names = analysis_batch.orig_labels, module.answer_columns, list(analysis_batch.activations)
    if clean.kept is not None:
        found = attribute(
            clean,
            lambda logits, points: logit_differences(_answers(module, logits, columns), labels[points]).sum(),
            names,
            columns,
        )
    else:
        _, everywhere = clean.backend.gradients(
            clean.inputs,
            list(clean.latent_models.values()),
            lambda logits: logit_differences(_answers(module, logits, None), labels).sum(),
            names,
        )
        found = {name: clean.points.of(values) for name, values in everywhere.items()}
    return {name: _of_alive(found[name], item.latents) for name, item in analysis_batch.activations.items()}


def _ablate(
    module: ITModule, analysis_batch: AnalysisBatch, clean: Prefill, name: str, row_budget: int | None
) -> Tensor:
    """Answers' logits without each alive latent, ``[batch, n_alive, num_labels]``."""
    alive, columns = analysis_batch.activations[name], module.answer_columns
    batch, n_alive = alive.values.shape
    examples = torch.arange(batch, device=alive.latents.device).repeat_interleave(n_alive)
    rows = LatentRows.single(name, torch.stack([examples, alive.latents.repeat(batch)], dim=-1))
    logits = clean.backend.ablate(clean, rows, columns, row_budget)
    return _answers(module, logits, columns).reshape(batch, n_alive, -1)


def _ablation_effects(alive: LatentValues, ablated: Tensor, clean: Tensor, labels: Tensor) -> LatentValues:
    effects = clean.unsqueeze(-1) - logit_differences(ablated, labels.unsqueeze(-1))
    return LatentValues(alive.latents, effects.masked_fill(alive.values <= 0, 0), alive.d_sae)


def _indices(inputs: ModelInputs, analysis_cfg: AnalysisCfg, batch_idx: int) -> Tensor:
    """Answer positions, checked against those that the configuration brings from another analysis."""
    found = inputs.answer_positions
    if analysis_cfg.answer_indices is not None:
        given = _entry(analysis_cfg.answer_indices, batch_idx, "answer_indices").to(found.device)
        if not torch.equal(given, found):
            raise AnalysisError(
                f"analysis_cfg.answer_indices of batch {batch_idx} are {given.tolist()}, but this batch has its "
                f"answers at {found.tolist()}. Both analyses must see the same batches in the same order."
            )
    return found


def _ordinary(value: Any) -> Any:
    """A tensor that was made in inference mode as one that was not."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _entry(values: Sequence[Any], batch_idx: int, name: str) -> Any:
    if batch_idx >= len(values):
        raise AnalysisError(
            f"analysis_cfg.{name} has {len(values)} batches, and batch {batch_idx} is asked for. Run the clean "
            "analysis over at least as many batches."
        )
    return values[batch_idx]
