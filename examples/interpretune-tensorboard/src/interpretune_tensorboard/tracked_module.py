"""What this adapter adds to the module of a session."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from interpretune import ITModule


@dataclass
class Logged:
    """Metrics that were logged while an analysis or a loop ran.

    Attributes:
        epoch_means: Whether it takes the means of epochs, as a loop does; otherwise it takes what steps log.
        values: By name, in the order of logging; tensors stay on their device until they are written.
    """

    epoch_means: bool
    values: dict[str, list[Tensor | float]] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Remember values."""
        for name, value in metrics.items():
            self.values.setdefault(name, []).append(value)


class TrackedModule(ITModule):
    """Remembers where its session writes, and what is logged while something runs.

    Attributes:
        tensorboard_folder: The session's own folder; None: nothing has been written.
        tensorboard_open: Metrics of the analyses and loops that run.
    """

    passing_state = frozenset({"tensorboard_folder", "tensorboard_open"})  # no result depends on them

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tensorboard_folder: Path | None = None
        self.tensorboard_open: dict[Hashable, Logged] = {}
