"""What this adapter adds to the module of a session."""

from __future__ import annotations

from typing import Any

from interpretune import ITModule


class TimedModule(ITModule):
    """Remembers how long its steps took.

    Attributes:
        step_seconds: Seconds of each call, by name of the step.
    """

    passing_state = frozenset({"step_seconds"})  # no result depends on it, so that stores are found again

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.step_seconds: dict[str, list[float]] = {}
