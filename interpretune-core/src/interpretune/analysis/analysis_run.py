"""What the hooks of an analysis carry: which analysis, on which batch, with what outcome."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from interpretune.errors import AnalysisError

if TYPE_CHECKING:
    from interpretune.activations.inputs import ModelInputs
    from interpretune.analysis.modes import AnalysisCfg
    from interpretune.operations import Plan
    from interpretune.store import AnalysisStore


@frozen(eq=False, kw_only=True)
class AnalysisRun:
    """An analysis over a data set, as ``it_open_analysis``, ``it_run_analysis`` and ``it_close_analysis`` see it.

    Attributes:
        name: What the runner calls it; an analysis that is run by its configuration alone is called after its mode.
        plan: What runs. None for a question, which is opened and closed only, and between opening and closing where the
            module has an ``analysis_test_step`` of its own, which decides that batch by batch.
        cfg: The configuration that was given; None where a plan or a question was.
        folder: Where the results go; None: into memory.
        store: The results, when it is closed: all of them, or, after an error, those until then. None before, and where
            there are none.
        error: When it is closed: the exception that ended the run, ``KeyboardInterrupt`` included; None: there was
            none.
        batch_idx: Index in the split of the batch that runs; None: none does.
        inputs: That batch.
    """

    name: str
    plan: Plan | None
    cfg: AnalysisCfg | None
    folder: Path | None = None
    store: AnalysisStore | None = None
    error: BaseException | None = None
    batch_idx: int | None = None
    inputs: ModelInputs | None = None
    _compute: Callable[[], dict[str, Any]] | None = field(default=None, repr=False)

    def at_batch(self, batch_idx: int, inputs: ModelInputs, compute: Callable[[], dict[str, Any]]) -> AnalysisRun:
        """The same on one batch.

        Args:
            batch_idx: Its index in the split.
            inputs: The batch.
            compute: Gives ``results``; called once at most.
        """
        return evolve(self, batch_idx=batch_idx, inputs=inputs, compute=functools.cache(compute))

    def results(self) -> dict[str, Any]:
        """Values of the fields that the plan keeps of the batch, by name; computed when they are first asked for.

        What analyses of one run have in common is computed once, and each has its own copy.

        Raises:
            AnalysisError: No batch runs.
        """
        if self._compute is None:
            raise AnalysisError(
                f"The analysis {self.name} has results of a batch inside it_run_analysis only; when it is closed they "
                "are in its store."
            )
        return self._compute()
