"""What modules and data modules save with ``save_hyperparameters``, without configurations and credentials."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import FrameType
from typing import Any

from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin

from interpretune.system import without_credentials

CONFIGURATIONS = ("it_cfg", "itdm_cfg")
"""Arguments of modules and data modules whose settings loggers and checkpoints have anyway."""


class Hyperparameters(HyperparametersMixin):
    """Loggers get hyperparameters without credentials."""

    def save_hyperparameters(
        self, *args: Any, ignore: Sequence[str] | str | None = None, frame: FrameType | None = None, logger: bool = True
    ) -> None:
        """As Lightning's, without the session's configuration, whose settings loggers and checkpoints have anyway.

        Args:
            *args: See Lightning.
            ignore: See Lightning.
            frame: See Lightning.
            logger: See Lightning.
        """
        here = inspect.currentframe()
        left_out = [ignore] if isinstance(ignore, str) else list(ignore or ())
        caller = frame or (here.f_back if here is not None else None)
        super().save_hyperparameters(*args, ignore=[*left_out, *CONFIGURATIONS], frame=caller, logger=logger)

    @property
    def hparams_initial(self) -> Any:
        """What loggers get, without credentials."""
        return AttributeDict(without_credentials(dict(super().hparams_initial)))
