"""The analysis modes, their configuration, and the choice of latent activations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interpretune.analysis.cache import AnalysisCache
from interpretune.analysis.offered_modes import OfferedMode
from interpretune.config.checked import CheckedConfig, Positive
from interpretune.errors import ConfigurationError, HookPointError
from interpretune.latents.latent_model import activation_name, layer_of
from interpretune.operations.objectives import LOGIT_DIFF, Objective, check_gradient, objective_of
from interpretune.operations.plan import Plan
from interpretune.system.offered import MODES

if TYPE_CHECKING:
    from interpretune.session.module import ITModule

NamesFilter = Callable[[str], bool]


class AnalysisMode(StrEnum):
    """What an analysis does with each batch; all quantities are taken at the answer position.

    ``clean_no_sae``: one forward without latent models: loss, predictions, objective (logit differences).
    ``clean_w_sae``: the same with all latent models spliced in, and the alive latents with their activations.
    ``ablation``: each alive latent set to zero; effect = clean objective - ablated objective.
    ``attr_patching``: effect = activation x gradient of the summed objective.
    """

    clean_no_sae = "clean_no_sae"
    clean_w_sae = "clean_w_sae"
    ablation = "ablation"
    attr_patching = "attr_patching"

    @property
    def splices(self) -> bool:
        """Whether the mode needs latent models."""
        return self is not AnalysisMode.clean_no_sae


@dataclass(kw_only=True)
class AnalysisCfg(CheckedConfig, checks_types=True):
    """What an analysis does and where its results go.

    Attributes:
        mode: The analysis: a mode of core, or the name of one that an installed package offers.
        analysis_cache: Takes the result of each batch.
        names_filter: Chooses the latent activations that are recorded: their names, or a predicate on names, such as
            ``construct_names_filter`` makes; None: all. All latent models are spliced in.
        objective: What is measured: ``logit_diff``, ``log_prob``, ``prob``, ``kl``, ``{name: options}``, an
            ``Objective``, or a function of an ``Outcome``.
        steps: For ``attr_patching``: integrated gradients over so many steps from zero to the activations; None: the
            gradient at the activations.
        base_logit_diffs: For ``ablation``: clean logit differences with latent models, ``[batch]`` for each batch;
            None: computed.
        answer_indices: For ``ablation``: answer positions, ``[batch]`` for each batch; None: computed.
        alive_latents: For ``ablation``: alive latents by activation name, for each batch; None: computed.
        row_budget: Most rows that run at a time in an ablation; None: chosen from the free memory.
        self_check: Compare a few replayed ablations with whole forwards before replays are trusted.
        plan: What runs and what is kept, in the place of what the mode and the settings say; None: that.
    """

    mode: AnalysisMode | str = AnalysisMode.clean_no_sae
    analysis_cache: AnalysisCache = field(default_factory=AnalysisCache)
    names_filter: NamesFilter | str | Collection[str] | None = None
    objective: Objective | str | Mapping[str, Any] = "logit_diff"
    steps: Positive | None = None
    base_logit_diffs: Sequence[Tensor] | None = None
    answer_indices: Sequence[Tensor] | None = None
    alive_latents: Sequence[Mapping[str, Tensor]] | None = None
    row_budget: Positive | None = None
    self_check: bool = True
    plan: Plan | None = None

    def __post_init__(self) -> None:
        self.mode = mode_named(self.mode, "AnalysisCfg.mode")
        self.objective = objective_of(self.objective)
        self._check_objective(self.objective)
        if self.analysis_cache.store is None:
            self.analysis_cache.objective_name, self.analysis_cache.unit = self.objective.name, self.objective.unit
        if isinstance(self.names_filter, str):
            self.names_filter = [self.names_filter]
        names = self.names_filter
        if names is None or callable(names):
            return
        if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
            raise ConfigurationError(
                f"AnalysisCfg.names_filter is {names!r}; give it names of activations, or a predicate on names such as "
                "construct_names_filter(module, (layers, ['hook_sae_acts_post']))."
            )

    def _check_objective(self, objective: Objective) -> None:
        if objective.reads == "row":
            raise ConfigurationError(
                f"AnalysisCfg.objective is {objective.name}: analyses change latents at the last token of a row, which "
                "changes the loss of none of its tokens. Use log_prob, or ask with a question at earlier positions: "
                "it.effects(session.module.backend, ...), QuestionCfg, or an analysis with units in a file."
            )
        if self.mode is AnalysisMode.attr_patching and self.steps is None:
            check_gradient(objective, "AnalysisCfg(steps=10)")
        if self.base_logit_diffs is not None and objective != LOGIT_DIFF:
            raise ConfigurationError(
                f"AnalysisCfg.base_logit_diffs are differences of two logits, and the objective is {objective.name}. "
                "Leave them out: it is computed."
            )

    @property
    def splices(self) -> bool:
        """Whether the mode may read latent models."""
        return not isinstance(self.mode, AnalysisMode) or self.mode.splices

    def choose_names(self, names: Sequence[str]) -> list[str]:
        """Those of some activation names that ``names_filter`` chooses, in their order.

        Raises:
            HookPointError: It chooses none, or names one that is not there: what is not recorded would look like an
                effect of exactly zero.
        """
        wanted = self.names_filter
        if wanted is None:
            return list(names)
        if not callable(wanted):
            absent = [name for name in wanted if name not in names]
            if absent:
                raise HookPointError(
                    f"AnalysisCfg.names_filter names {', '.join(absent)}, and no latent model has such activations. "
                    f"The session's latent activations are {list(names)}."
                )
            wanted = frozenset(wanted).__contains__
        chosen = [name for name in names if wanted(name)]
        if not chosen:
            raise HookPointError(
                "AnalysisCfg.names_filter chooses no latent activation. The session's latent activations are "
                f"{list(names)}; construct_names_filter makes a filter of their layers."
            )
        return chosen


def mode_named(given: Any, where: str) -> AnalysisMode | OfferedMode:
    """The mode of a name: one of core's, or one that an installed package offers.

    Raises:
        AdapterError: The package offers a name that it may not.
        ConfigurationError: There is none; the message says where it is wanted.
    """
    try:
        return AnalysisMode(given)
    except ValueError as error:
        offered = MODES.offered()
        if isinstance(given, str) and given in offered:
            return OfferedMode.named(given)
        names = [*map(str, AnalysisMode), *(name for name in offered if name not in MODES.own)]
        near = get_close_matches(str(given), names, n=1)
        raise ConfigurationError(
            f"{where} is {given!r}; the modes are {', '.join(map(repr, names))}."
            + (f" Did you mean {near[0]!r}?" if near else "")
        ) from error


def construct_names_filter(module: ITModule, target_hooks: tuple[Sequence[int], Sequence[str]]) -> NamesFilter:
    """A filter for the latent activations of some layers.

    Args:
        module: Its latent models have the names to choose from.
        target_hooks: Layers, and last parts of activation names such as ``hook_sae_acts_post``.

    Raises:
        HookPointError: A layer has no latent model with such a name: a filter that silently matches nothing would
            look like an effect of exactly zero.
    """
    layers, endings = target_hooks
    names = [activation_name(latent_model) for latent_model in module.latent_models]
    chosen: set[str] = set()
    for layer in layers:
        found = [name for name in names if layer_of(name) == layer and name.rsplit(".", 1)[-1] in endings]
        if not found:
            raise HookPointError(
                f"No latent model of layer {layer} has activations that end in {' or '.join(endings)}. "
                f"The session's latent activations are {names}."
            )
        chosen.update(found)
    return chosen.__contains__
