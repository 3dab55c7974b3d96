"""The last rule: nothing lives on."""

from __future__ import annotations

from interpretune.testing.bench import Bench
from interpretune.testing.rule import rule


@rule(stack=True, after=["session-runs"])
def sessions_end(bench: Bench) -> None:
    """The sessions of all rules before, whatever was done with them, end without an error."""
    bench.end_sessions()
