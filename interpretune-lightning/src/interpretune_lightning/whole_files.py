"""Lightning's checkpoints as files that are whole or absent, wherever they are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

ONE_FILE = ("auto", "ddp", "ddp_find_unused_parameters_true")
"""Strategies whose checkpoints are one file."""


class WholeFiles(TorchCheckpointIO):
    """Puts a checkpoint in its place when it is written.

    Lightning writes to the folder for temporary files and moves the file from there. Between two file systems that is a
    copy, and a process that is killed meanwhile leaves half of ``last.ckpt`` in place of the earlier one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write beside the place, then rename."""
        place = Path(path)
        partial = place.with_name(f".{place.name}.partial")
        super().save_checkpoint(checkpoint, partial, storage_options)
        partial.replace(place)


def checkpoint_plugins(trainer_kwargs: Mapping[str, Any]) -> list[Any]:
    """What the Trainer of a loop gets as plugins: the user's, and ``WholeFiles`` where checkpoints are one file."""
    given = trainer_kwargs.get("plugins") or []
    plugins = list(given) if isinstance(given, (list, tuple)) else [given]
    if trainer_kwargs.get("strategy", "auto") not in ONE_FILE:
        return plugins
    return plugins if any(hasattr(item, "save_checkpoint") for item in plugins) else [*plugins, WholeFiles()]
