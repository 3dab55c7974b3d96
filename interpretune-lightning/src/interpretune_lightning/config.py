"""Configuration of sessions under Lightning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from interpretune import ITConfig


@dataclass(kw_only=True)
class ITLightningConfig(ITConfig, checks_types=True):
    """Module configuration with what ``fit``, ``validate``, ``test`` and ``predict`` hand to the Trainer.

    Attributes:
        trainer_kwargs: Arguments of ``Trainer`` that ``LoopConfig`` does not have: ``strategy``, ``devices``,
            ``precision``, ``callbacks``, ``logger``, ...
    """

    trainer_kwargs: dict[str, Any] = field(default_factory=dict)
