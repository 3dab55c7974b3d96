"""The four analysis modes as plans."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from attrs import evolve, frozen
from torch import Tensor

from interpretune.analysis.batch import FIELDS, INTERMEDIATES
from interpretune.analysis.modes import AnalysisCfg, AnalysisMode
from interpretune.analysis.offered_modes import OfferedMode
from interpretune.errors import AnalysisError
from interpretune.latents.latent_model import LatentModel, activation_name
from interpretune.operations import latent_analyses as parts, objective_analyses as measured
from interpretune.operations.definition import SOURCES, Operation
from interpretune.operations.objectives import LOGIT_DIFF, Objective, objective_of
from interpretune.operations.plan import Plan

NUMBERS = frozenset(
    op.name
    for op in (
        *(parts.answer_columns, parts.mean_loss, parts.predict_answers, parts.differ_answers),
        *(parts.count_from_clean, parts.ablation_effects, parts.attribution_effects),
        *(measured.measure_objective, measured.effects_on_objective),
    )
)


@frozen(eq=False)
class ModeOperations:
    """A mode in two halves: what runs the model, and what follows from that."""

    passes: Sequence[Operation]
    numbers: Sequence[Operation]


def operations_of(cfg: AnalysisCfg, latent_models: Sequence[LatentModel]) -> ModeOperations:
    """The operations of a mode.

    Raises:
        AnalysisError: The mode needs latent models and there are none.
        HookPointError: The configuration chooses latent activations that are not there.
    """
    if isinstance(cfg.mode, OfferedMode):
        return ModeOperations(cfg.mode.operations(cfg, latent_models), [])
    passes: list[Operation] = [parts.answer_positions.with_options(known=cfg.answer_indices)]
    objective = objective_of(cfg.objective)
    plain, chosen = objective == LOGIT_DIFF, {"objective": objective}
    measure = measured.named(measured.measure_objective.with_options(**chosen), objective)
    numbers = [parts.answer_columns, parts.mean_loss, parts.predict_answers, parts.differ_answers if plain else measure]
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
        ablate = parts.ablate_alive if plain else measured.measure_ablated.with_options(**chosen)
        ablate = ablate.with_options(row_budget=cfg.row_budget)
        passes += [ablate if plain else measured.named(ablate, objective, "without the latent: ")]
        effects = parts.ablation_effects if plain else measured.effects_on_objective
        numbers += [parts.count_from_clean.with_options(known=cfg.base_logit_diffs)] if plain else []
    elif cfg.mode is AnalysisMode.attr_patching:
        passes += [parts.gradients_of_alive.with_options(**chosen, steps=cfg.steps)]
        effects = parts.attribution_effects
    else:
        return ModeOperations(passes, numbers)
    passes.append(parts.noise_of_effects.with_options(**chosen))
    numbers.append(effects if plain else measured.named(effects, objective, "effect on "))
    return ModeOperations(passes, numbers)


def numbers_of(plan: Plan) -> list[Operation]:
    """The operations of a plan that compute loss, predictions, differences and effects from logits and latents."""
    return [op for op in plan.operations if op.name in NUMBERS]


def with_alive(plan: Plan, alive_latents: Sequence[Mapping[str, Tensor]]) -> Plan:
    """A plan whose alive latents are given, by activation name, for each batch."""
    find = parts.find_alive
    chosen = [op.with_options(known=alive_latents) if op.name == find.name else op for op in plan.operations]
    return evolve(plan, operations=tuple(chosen))


def measured_by(plan: Plan) -> Objective | None:
    """The objective of a plan's effects; None: it has none of the modes' operations."""
    named = [op.options["objective"] for op in plan.operations if "objective" in op.options]
    plain = any(op.name == parts.differ_answers.name for op in plan.operations)
    return objective_of(named[0]) if named else LOGIT_DIFF if plain else None


def mode_of(plan: Plan) -> AnalysisMode:
    """The mode whose operations a plan has, the one with most of them."""
    there = {op.name for op in plan.operations}
    if there & {parts.ablation_effects.name, measured.effects_on_objective.name}:
        return AnalysisMode.ablation
    if parts.attribution_effects.name in there:
        return AnalysisMode.attr_patching
    return AnalysisMode.clean_w_sae if parts.spliced_run.name in there else AnalysisMode.clean_no_sae


def plan_of(
    cfg: AnalysisCfg,
    latent_models: Sequence[LatentModel],
    further: Sequence[Operation] = (),
    keep: Collection[str] | None = None,
) -> Plan:
    """The plan of a configuration: that of its mode, unless it names another.

    Args:
        cfg: The mode and its inputs; ``analysis_cache.save_cfg`` says whether texts, logits and gradients are kept.
        latent_models: Those of the session.
        further: Operations that run beside those of the mode.
        keep: Fields that are results; None: those of the mode and of ``further``.

    Raises:
        PlanError: The further operations do not fit to those of the mode.
        HookPointError: The configuration chooses latent activations that are not there.
    """
    if cfg.plan is not None and not further and keep is None:
        return cfg.plan
    mode, save = operations_of(cfg, latent_models), cfg.analysis_cache.save_cfg
    texts = [parts.unpadded_tokens, parts.token_pieces] if save.tokens else []
    texts += [parts.unpadded_tokens, parts.prompt_texts] if save.prompts else []
    left_out = {*(() if save.intermediates else INTERMEDIATES), *(() if save.tokens else ("tokens", "pieces"))}
    own = [*further, *(mode.passes if isinstance(cfg.mode, OfferedMode) else ())]
    wanted = {name for name in FIELDS if name not in left_out} | {item.name for op in own for item in op.writes}
    operations = [*mode.passes, *mode.numbers, *texts, *further]
    there = [*SOURCES.values(), *(item for op in operations for item in op.writes)]
    return Plan.of(
        operations, [item.name for item in there if item.name in wanted and item.stored] if keep is None else keep
    )
