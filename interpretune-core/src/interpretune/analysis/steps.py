"""The two calls of an analysis step: run the mode on a batch, then see that its numbers are those of its logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve
from torch import Tensor
from torch.nn import functional

from interpretune.activations.inputs import ModelInputs
from interpretune.analysis.analysis_run import AnalysisRun
from interpretune.analysis.batch import FIELDS, INTERMEDIATES, AnalysisBatch
from interpretune.analysis.mode_plans import numbers_of, plan_of, with_alive
from interpretune.analysis.modes import AnalysisCfg
from interpretune.errors import AnalysisError
from interpretune.latents.latent_model import LatentModel, activation_name
from interpretune.operations.definition import SOURCES
from interpretune.operations.execution import mismatch, run_plan
from interpretune.operations.plan import Plan
from interpretune.session.answers import reader_of
from interpretune.store.fields import Per

if TYPE_CHECKING:
    from interpretune.session.module import ITModule


def run_with_ctx(
    module: ITModule, analysis_batch: AnalysisBatch, analysis_cfg: AnalysisCfg, batch: Mapping[str, Any], batch_idx: int
) -> None:
    """Run the configured mode on one batch, inside ``it_run_analysis``, and fill ``analysis_batch``.

    Args:
        module: A composed module.
        analysis_batch: Has the labels; receives all results, as the stacked adapters leave them.
        analysis_cfg: The mode and its inputs.
        batch: Tokens and attention mask; labels are ignored.
        batch_idx: Index into the per-batch inputs of the configuration.

    Raises:
        AnalysisError: The mode needs latent models and the session has none, or an adapter gave no results.
        DataError: The batch has no attention mask.
    """
    with torch.inference_mode(mode=False):  # trainers test in inference mode, whose tensors know no gradients
        sources = sources_of(module, analysis_batch.labels, analysis_batch.orig_labels, batch, batch_idx)
        plan = plan_of(analysis_cfg, module.latent_models)
        if analysis_batch.alive_latents and analysis_cfg.alive_latents is None:  # the step has chosen them
            plan = with_alive(plan, [analysis_batch.alive_latents] * (batch_idx + 1))
        plan.check_backend(module.backend, module.latent_models)
        alone = AnalysisRun(name=str(analysis_cfg.mode), plan=None, cfg=analysis_cfg)
        analysis = evolve(analysis_cfg.analysis_cache.analysis or alone, plan=plan)
        values: dict[str, Any] = {}

        def compute() -> dict[str, Any]:
            values.update(run_plan(plan, sources, len(sources["inputs"])))
            return {item.name: values[item.name] for item in plan.kept}

        found = analyse_batch(module, analysis.at_batch(batch_idx, sources["inputs"], compute))
        analysis_batch.take({**values, **found})
        analysis_batch.further = {name: value for name, value in found.items() if name not in FIELDS}
        if analysis_cfg.splices:
            analysis_batch.dashboard_urls = dashboard_urls(module.latent_models)
        analysis_batch.counted_from = _what_counts(analysis_batch, analysis_cfg, batch_idx)


def loss_and_logit_diffs(
    module: ITModule, analysis_batch: AnalysisBatch, analysis_cfg: AnalysisCfg, batch: Mapping[str, Any], batch_idx: int
) -> None:
    """See that loss, predictions, logit differences and effects are those of the logits in ``analysis_batch``.

    ``run_with_ctx`` leaves them so. Where logits, activations, gradients, labels or the configuration were changed
    since, all four are computed anew.

    Args:
        module: Its ``standardize_logits`` reduces logits to the answers; its ``loss_fn``, where it has one, is used.
        analysis_batch: Filled in place.
        analysis_cfg: The mode, and clean logit differences for ``ablation``.
        batch: May hold the rows' own answers.
        batch_idx: Index into ``analysis_cfg.base_logit_diffs``.
    """
    if analysis_batch.counted_from == _what_counts(analysis_batch, analysis_cfg, batch_idx):
        return
    if analysis_batch.answer_logits is None:
        raise AnalysisError("There are no answer logits: call run_with_ctx before loss_and_logit_diffs.")
    numbers = numbers_of(plan_of(analysis_cfg, module.latent_models))
    given = {name: FIELDS[name] for name in ("activations", *INTERMEDIATES)}
    plan = Plan.of(numbers, sources={**SOURCES, **given})
    there = {name: getattr(analysis_batch, name) for name in given}
    sources = _sources(module, analysis_batch, None, batch, batch_idx)
    values = run_plan(plan, {**there, **sources}, len(analysis_batch))
    for name in ("loss", "preds", "logit_diffs", "objective", "effects"):
        if name in values:
            setattr(analysis_batch, name, values[name])


def _what_counts(analysis_batch: AnalysisBatch, analysis_cfg: AnalysisCfg, batch_idx: int) -> list[Any]:
    """Which tensors, in which state, loss, differences and effects follow from."""
    by_name = (analysis_batch.activations, *(getattr(analysis_batch, name) for name in INTERMEDIATES[1:]))
    of_latents = [item for values in by_name for item in values.values()]
    tensors = [
        *(analysis_batch.labels, analysis_batch.orig_labels, analysis_batch.answer_logits),
        *(tensor for item in of_latents for tensor in (item.latents, item.values)),
    ]
    states = [None if item is None else _State(item) for item in tensors]
    return [*states, _State(analysis_cfg.base_logit_diffs), analysis_cfg.mode, batch_idx]


class _State:
    """An object as it is now; equal to another state where it is the same object and nobody wrote into it since."""

    def __init__(self, value: Any) -> None:
        tracked = isinstance(value, Tensor) and not value.is_inference()
        self.value, self.version = value, value._version if tracked else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _State) and self.value is other.value and self.version == other.version

    __hash__ = None  # type: ignore[assignment]  # states are compared, never looked up


def analyse_batch(module: ITModule, analysis: AnalysisRun) -> dict[str, Any]:
    """Call ``it_run_analysis`` and check what comes back (``AnalysisError``): that is what is stored."""
    found = module.hook.it_run_analysis(module=module, analysis=analysis)
    if wrong := _what_is_wrong(found, analysis):
        assert module.context is not None, "a composed module has a context"
        owners = dict(module.context.answers())["it_run_analysis"]
        raise AnalysisError(
            f"it_run_analysis gave {wrong} for batch {analysis.batch_idx} of the analysis {analysis.name}. It is "
            f"answered by {', '.join(owners)}. Return what analysis.results() gives, or a mapping with the same names "
            "in which values are changed; a wrapper ends with `return (yield)`, or with such a mapping."
        )
    return dict(found)


def _what_is_wrong(found: object, analysis: AnalysisRun) -> str:
    assert analysis.plan is not None, "the analysis is at a batch"
    assert analysis.inputs is not None, "the analysis is at a batch"
    wanted = {item.name: item for item in analysis.plan.kept if item.per is not Per.run}
    if not isinstance(found, Mapping):
        return "None" if found is None else f"a {type(found).__name__}"
    if missing := [name for name in wanted if name not in found]:
        return f"a mapping without {', '.join(missing)}"
    if unknown := [str(name) for name in found if name not in wanted]:
        return f"a mapping with {', '.join(unknown)}, which the plan does not keep,"
    for name, item in wanted.items():
        if name in analysis.plan.sources:
            continue  # what the data module and the module's own labels_to_ids give was checked by nobody before
        if (wrong := mismatch(item, found[name], len(analysis.inputs))) is not None:
            return f"{wrong} as {item}"
    return ""


def dashboard_urls(latent_models: Sequence[LatentModel]) -> dict[str, str]:
    """Published page of each latent, with the placeholder ``{latent}``, by activation name."""
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
        return _sources(module, analysis_batch, inputs, batch, batch_idx)


def _sources(
    module: ITModule, analysis_batch: AnalysisBatch, inputs: ModelInputs | None, batch: Any, batch_idx: int
) -> dict[str, Any]:
    known = {} if module.datamodule is None else {"tokenizer": module.datamodule.tokenizer}
    return {
        "inputs": inputs,
        "labels": analysis_batch.labels,
        "orig_labels": analysis_batch.orig_labels,
        "batch": batch,
        "batch_idx": batch_idx,
        "answer_reader": reader_of(module, batch),
        "loss_fn": getattr(module, "loss_fn", functional.cross_entropy),
        "backend": module.backend,
        "latent_models": module.latent_models,
        "module": module,
        **known,
    }


def _ordinary(value: Any) -> Any:
    """A tensor that was made in inference mode as one that was not."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
