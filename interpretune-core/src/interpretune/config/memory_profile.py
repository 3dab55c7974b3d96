"""Which calls of steps are recorded with their time and memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from interpretune.config.checked import Between, CheckedConfig, Positive


@dataclass(kw_only=True)
class MemoryProfileCfg(CheckedConfig, checks_types=True):
    """Which calls of steps are recorded, and where.

    Attributes:
        steps: Names of the steps; None: all that are decorated.
        warmup: How many first calls of each step are not recorded.
        every: Of the calls after those, each how-manyth is.
        at_most: Most calls of each step that are recorded; None: all.
        file: JSON lines that records are added to; None: they are in ``module.step_profile`` alone.
        allocator_history: On CUDA, save what was allocated where during each recorded call, as
            ``torch.cuda.memory._dump_snapshot`` does, beside the file: ``<file>-<step>-<call>.pickle``.
    """

    steps: list[str] | None = None
    warmup: Annotated[int, Between(0)] = 0
    every: Positive = 1
    at_most: Positive | None = None
    file: str | Path | None = None
    allocator_history: bool = False

    def takes(self, step: str, call: int) -> bool:
        """Whether a call of a step is recorded; calls are counted from 0."""
        number, rest = divmod(call - self.warmup, self.every)
        chosen = self.steps is None or step in self.steps
        return chosen and number >= 0 and not rest and (self.at_most is None or number < self.at_most)
