"""The two calls of an analysis step: run the model as the mode says, then turn logits into differences and effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpretune.analysis.batch import AnalysisBatch
from interpretune.analysis.inputs import ModelInputs
from interpretune.analysis.latent_model import LatentModel, activation_name
from interpretune.analysis.modes import AnalysisCfg
from interpretune.analysis.operations.execution import run_plan
from interpretune.analysis.operations.latent_analyses import (
    ABLATED_LOGITS,
    ACTIVATIONS,
    ANSWER_LOGITS,
    GRADIENTS,
    answer_positions,
    entry_of,
)
from interpretune.analysis.operations.mode_plans import operations_of
from interpretune.analysis.operations.operation import SOURCES
from interpretune.analysis.operations.plan import Plan
from interpretune.errors import AnalysisError

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
    with torch.inference_mode(mode=False):  # trainers test in inference mode, whose tensors know no gradients
        inputs = ModelInputs.from_batch({name: _ordinary(value) for name, value in batch.items()})
        analysis_batch.labels = _ordinary(analysis_batch.labels)
        analysis_batch.orig_labels = _ordinary(analysis_batch.orig_labels)
        analysis_batch.answer_indices = answer_positions(inputs, batch_idx, known=analysis_cfg.answer_indices)
        if analysis_cfg.alive_latents is not None:
            analysis_batch.alive_latents = entry_of(analysis_cfg.alive_latents, batch_idx, "analysis_cfg.alive_latents")
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
    if analysis_batch.answer_logits is None:
        raise AnalysisError("There are no answer logits: call run_with_ctx before loss_and_logit_diffs.")
    one = _one_batch(analysis_batch, analysis_cfg, batch_idx)
    operations = operations_of(one, module.latent_models).numbers
    given = {item.name: item for item in (ANSWER_LOGITS, ABLATED_LOGITS, ACTIVATIONS, GRADIENTS)}
    plan = Plan.of(operations, sources={**SOURCES, **given})
    there = {"gradients": {}, "activations": {}, "ablated_logits": {}, **analysis_batch.as_fields()}
    values = run_plan(plan, {**there, **_sources(module, analysis_batch, None)}, len(analysis_batch))
    for name in ("loss", "preds", "logit_diffs", "effects"):
        if name in values:
            setattr(analysis_batch, name, values[name])


def run_mode(module: ITModule, analysis_batch: AnalysisBatch, analysis_cfg: AnalysisCfg, inputs: ModelInputs) -> None:
    """The passes of the four modes; core's answer to ``it_run_analysis``."""
    one = _one_batch(analysis_batch, analysis_cfg, None)
    plan = Plan.of(operations_of(one, module.latent_models).passes)
    plan.check_backend(module.backend, module.latent_models)
    values = run_plan(plan, _sources(module, analysis_batch, inputs), len(inputs))
    analysis_batch.take(values)
    if analysis_cfg.mode.splices:
        analysis_batch.dashboard_urls = dashboard_urls(module.latent_models)


def dashboard_urls(latent_models: Sequence[LatentModel]) -> dict[str, str]:
    """Published page of each latent, with the place holder ``{latent}``, by activation name."""
    return {activation_name(item): url for item in latent_models if (url := item.dashboard_url())}


def sources_of(module: ITModule, labels: Tensor, orig_labels: Tensor, batch: Any, batch_idx: int) -> dict[str, Any]:
    """What operations can read of a batch without anybody writing it.

    Args:
        module: A composed module.
        labels: Answer tokens, ``[batch]``.
        orig_labels: Labels, ``[batch]``.
        batch: Tokens and attention mask, without labels.
        batch_idx: Index in the split.

    Raises:
        DataError: The batch has no attention mask.
    """
    with torch.inference_mode(mode=False):  # trainers test in inference mode, whose tensors know no gradients
        inputs = ModelInputs.from_batch({name: _ordinary(value) for name, value in batch.items()})
        analysis_batch = AnalysisBatch(labels=_ordinary(labels), orig_labels=_ordinary(orig_labels))
        return _sources(module, analysis_batch, inputs) | {"batch": batch, "batch_idx": batch_idx}


def _sources(module: ITModule, analysis_batch: AnalysisBatch, inputs: ModelInputs | None) -> dict[str, Any]:
    return {
        "inputs": inputs,
        "labels": analysis_batch.labels,
        "orig_labels": analysis_batch.orig_labels,
        "batch": None,
        "batch_idx": 0,
        "module": module,
        "backend": module.backend,
        "latent_models": module.latent_models,
    }


def _one_batch(analysis_batch: AnalysisBatch, analysis_cfg: AnalysisCfg, batch_idx: int | None) -> AnalysisCfg:
    """The configuration for one batch: results of other analyses are those of the batch alone."""
    diffs = analysis_cfg.base_logit_diffs
    one = diffs if diffs is None or batch_idx is None else [entry_of(diffs, batch_idx, "analysis_cfg.base_logit_diffs")]
    alive = [analysis_batch.alive_latents] if analysis_batch.alive_latents else None
    return replace(analysis_cfg, answer_indices=None, base_logit_diffs=one, alive_latents=alive)


def _ordinary(value: Any) -> Any:
    """A tensor that was made in inference mode as one that was not."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
