"""The four analysis modes as plans."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from attrs import frozen

from interpretune.analysis.modes import AnalysisCfg, AnalysisMode
from interpretune.errors import AnalysisError
from interpretune.latents.latent_model import LatentModel, activation_name
from interpretune.operations import latent_analyses as parts
from interpretune.operations.definition import SOURCES, Operation
from interpretune.operations.plan import Plan

RESULTS = (
    "labels",
    "orig_labels",
    "answer_indices",
    "loss",
    "preds",
    "logit_diffs",
    "activations",
    "peak_values",
    "peak_positions",
    "effects",
    "effect_noise",
)
"""What a mode keeps, where it has it; logits and gradients are kept on request."""
INTERMEDIATES = ("answer_logits", "gradients", "ablated_logits")


@frozen(eq=False)
class ModeOperations:
    """A mode in two halves: what runs the model, and what follows from that."""

    passes: Sequence[Operation]
    numbers: Sequence[Operation]


def operations_of(cfg: AnalysisCfg, latent_models: Sequence[LatentModel]) -> ModeOperations:
    """The operations of a mode.

    Args:
        cfg: The mode and its inputs.
        latent_models: Those of the session.

    Raises:
        AnalysisError: The mode needs latent models and there are none.
        HookPointError: The configuration chooses latent activations that are not there.
    """
    passes: list[Operation] = [parts.answer_positions.with_options(known=cfg.answer_indices)]
    numbers = [parts.answer_columns, parts.mean_loss, parts.predict_answers, parts.differ_answers]
    if cfg.mode is AnalysisMode.clean_no_sae:
        return ModeOperations([*passes, parts.plain_forward], numbers)
    if not latent_models:
        raise AnalysisError(
            f"The mode {cfg.mode} needs latent models and this session has none. Stack an adapter that loads them and "
            "configure it, or pass your own as ITConfig(latent_models=[...])."
        )
    names = tuple(cfg.choose_names([activation_name(item) for item in latent_models]))
    passes += [
        parts.spliced_run.with_options(names=names, self_check=cfg.self_check),
        parts.spliced_logits,
        parts.find_alive.with_options(known=cfg.alive_latents),
        parts.activations_of_alive,
        parts.peaks_of_alive,
    ]
    if cfg.mode is AnalysisMode.ablation:
        passes += [parts.ablate_alive.with_options(row_budget=cfg.row_budget), parts.noise_of_effects]
        numbers += [parts.count_from_clean.with_options(known=cfg.base_logit_diffs), parts.ablation_effects]
    elif cfg.mode is AnalysisMode.attr_patching:
        passes += [parts.gradients_of_alive, parts.noise_of_effects]
        numbers.append(parts.attribution_effects)
    return ModeOperations(passes, numbers)


def plan_of(
    cfg: AnalysisCfg,
    latent_models: Sequence[LatentModel],
    further: Sequence[Operation] = (),
    keep: Collection[str] | None = None,
) -> Plan:
    """The plan of a mode.

    Args:
        cfg: The mode and its inputs; ``analysis_cache.save_cfg`` says whether texts, logits and gradients are kept.
        latent_models: Those of the session.
        further: Operations that run beside those of the mode.
        keep: Fields that are results; None: those of the mode and of ``further``.

    Raises:
        PlanError: The further operations do not fit to those of the mode.
        HookPointError: The configuration chooses latent activations that are not there.
    """
    mode, save = operations_of(cfg, latent_models), cfg.analysis_cache.save_cfg
    texts = [parts.unpadded_tokens, parts.token_pieces] if save.tokens else []
    texts += [parts.unpadded_tokens, parts.prompt_texts] if save.prompts else []
    wanted = {*RESULTS, *(INTERMEDIATES if save.intermediates else ())}
    wanted |= {"tokens", "pieces"} if save.tokens else set()
    wanted |= {"prompts"} if save.prompts else set()
    wanted |= {item.name for op in further for item in op.writes}
    operations = [*mode.passes, *mode.numbers, *texts, *further]
    there = [*SOURCES.values(), *(item for op in operations for item in op.writes)]
    return Plan.of(
        operations, [item.name for item in there if item.name in wanted and item.stored] if keep is None else keep
    )
