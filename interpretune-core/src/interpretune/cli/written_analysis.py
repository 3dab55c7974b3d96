"""What a configuration file says of a run beside its session: analyses, and how they are run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from interpretune.analysis import AnalysisCache, AnalysisCfg, SaveCfg, offered_operations, plan_of
from interpretune.config.checked import CheckedConfig, Seed
from interpretune.operations import Plan, find_operation, load_operations

if TYPE_CHECKING:
    from interpretune.operations import Operation
    from interpretune.session.module import ITModule


@dataclass(kw_only=True)
class WrittenAnalysis(AnalysisCfg, checks_types=True):
    """An analysis as a file says it: a mode with its settings, and what runs beside it.

    Attributes:
        analysis_cache: Empty; results go to a store.
        plan: None: ``operations`` and ``keep`` say it.
        save: What is kept beside numbers.
        operations: Operations that run beside those of the mode: names (see ``find_operation``), or files and folders
            (see ``load_operations``).
        trusted: For files from elsewhere (``https://...``): SHA-256 of each file that may run, by file name.
        keep: Fields that are results; None: those of the mode and of the operations.
    """

    analysis_cache: AnalysisCache = field(init=False, repr=False, compare=False, default_factory=AnalysisCache)
    plan: Plan | None = field(init=False, repr=False, compare=False, default=None)
    save: SaveCfg = field(default_factory=SaveCfg)
    operations: Sequence[str] = field(default_factory=list)
    trusted: Mapping[str, str] = field(default_factory=dict)
    keep: Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.analysis_cache = AnalysisCache(self.save)

    def cfg(self, module: ITModule) -> AnalysisCfg:
        """The configuration for a session's module.

        Raises:
            PlanError: An operation is not found, or does not fit.
            HookPointError: The settings choose latent activations that are not there.
        """
        settings = {item.name: getattr(self, item.name) for item in fields(AnalysisCfg)}
        if self.operations or self.keep is not None:
            settings["plan"] = plan_of(self, module.latent_models, self._operations_beside(module), self.keep)
        return AnalysisCfg(**settings)

    def _operations_beside(self, module: ITModule) -> list[Operation]:
        found: list[Operation] = []
        for source in self.operations:
            if "/" in source or source.endswith(".py"):
                found += load_operations(source, self.trusted).values()
            else:
                found.append(find_operation(source, offered_operations(module)))
        return found


@dataclass(kw_only=True)
class RunnerOptions(CheckedConfig, checks_types=True):
    """How analyses are run.

    Attributes:
        root: Folder of the result stores.
        limit: Most rows of each analysis, and of held-out rows, up to whole batches; None: all.
        seed: Of operations that draw.
    """

    root: str = "analyses"
    limit: int | None = None
    seed: Seed = 0
