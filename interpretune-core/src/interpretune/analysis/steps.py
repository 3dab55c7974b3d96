"""The two calls of an analysis step: run the model as the mode says, then turn logits into differences and effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from interpretune.analysis.backend import SplicedRun
from interpretune.analysis.batch import AnalysisBatch, LatentValues, Peaks, alive_at, at_positions
from interpretune.analysis.inputs import ModelInputs
from interpretune.analysis.latent_model import activation_name
from interpretune.analysis.modes import AnalysisCfg, AnalysisMode
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
    names = [
        name
        for name in map(activation_name, latent_models)
        if analysis_cfg.names_filter is None or analysis_cfg.names_filter(name)
    ]
    if mode is AnalysisMode.clean_no_sae:
        with torch.no_grad():
            analysis_batch.answer_logits = backend.run(inputs)
        return
    if mode is AnalysisMode.attr_patching:
        labels = analysis_batch.orig_labels

        def summed_differences(logits: Tensor) -> Tensor:
            return logit_differences(module.standardize_logits(logits)[:, -1, :], labels).sum()

        run, gradients = backend.gradients(inputs, latent_models, summed_differences, names)
    else:
        with torch.no_grad():
            run, gradients = backend.run_spliced(inputs, latent_models, record=names), {}
    _store(module, analysis_batch, run, gradients, inputs)
    if mode is AnalysisMode.ablation:
        analysis_batch.ablated_logits = {
            name: _ablate(module, analysis_batch, inputs, name, analysis_cfg.row_budget) for name in names
        }


def _store(
    module: ITModule,
    analysis_batch: AnalysisBatch,
    run: SplicedRun,
    gradients: Mapping[str, Tensor],
    inputs: ModelInputs,
) -> None:
    """Reduce full activations to the answer position and to the alive latents, those already named or those found."""
    alive = analysis_batch.alive_latents
    positions = inputs.answer_positions
    first = inputs.attention_mask.to(torch.int64).argmax(dim=-1)
    padding = ~inputs.attention_mask.bool().unsqueeze(-1)
    found: dict[str, dict[str, Any]] = {"alive": {}, "values": {}, "gradients": {}, "peaks": {}}
    for name, activations in run.activations.items():
        at_answer = at_positions(activations, positions)
        latents = alive[name].to(at_answer.device) if name in alive else alive_at(at_answer)
        d_sae = at_answer.shape[-1]
        found["alive"][name] = latents
        found["values"][name] = LatentValues(latents, at_answer[:, latents], d_sae)
        highest, where = activations[..., latents].masked_fill(padding, -torch.inf).max(dim=1)
        found["peaks"][name] = Peaks(latents, highest, where - first.unsqueeze(-1))
        if name in gradients:
            found["gradients"][name] = LatentValues(
                latents, at_positions(gradients[name], positions)[:, latents], d_sae
            )
    analysis_batch.answer_logits = run.answer_logits
    analysis_batch.alive_latents = found["alive"]
    analysis_batch.activations = found["values"]
    analysis_batch.gradients = found["gradients"]
    analysis_batch.peaks = found["peaks"]
    analysis_batch.dashboard_urls = {
        activation_name(item): url for item in module.latent_models if (url := item.dashboard_url())
    }


def _ablate(
    module: ITModule, analysis_batch: AnalysisBatch, inputs: ModelInputs, name: str, row_budget: int | None
) -> Tensor:
    """Answers' logits without each alive latent, ``[batch, n_alive, num_labels]``.

    A latent that is inactive in an example has no effect there: such rows keep the clean logits and cost nothing.
    """
    assert analysis_batch.answer_logits is not None  # set by _store
    alive = analysis_batch.activations[name]
    clean = module.standardize_logits(analysis_batch.answer_logits)[:, -1, :]
    ablated = clean.unsqueeze(1).repeat(1, len(alive.latents), 1)
    examples, columns = (alive.values > 0).nonzero().unbind(-1)
    rows = torch.stack([examples, alive.latents[columns]], dim=-1)
    if len(rows):
        logits = module.backend.ablate_latents(inputs, module.latent_models, name, rows, row_budget=row_budget)
        ablated[examples, columns] = module.standardize_logits(logits)[:, -1, :]
    return ablated


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
