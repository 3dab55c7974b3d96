"""The last rule: nothing lives on."""

from __future__ import annotations

from interpretune.testing.rule import rule
from interpretune.testing.workbench import Bench


@rule(stack=True, after=["session-runs"])
def sessions_end(bench: Bench) -> None:
    """The sessions of all rules before, and one that has predicted, end without an error."""
    module = bench.module
    module.run_step("predict_step", module.batch_to_device(next(iter(bench.session.datamodule.test_dataloader()))), 0)
    bench.end_sessions()
