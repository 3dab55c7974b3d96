"""Lightning's checkpoints as files that are whole or absent, and whose content is looked at before it is used."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

from interpretune import CheckpointError

ONE_FILE = ("auto", "ddp", "ddp_find_unused_parameters_true")
"""Strategies whose checkpoints are one file."""


class WholeFiles(TorchCheckpointIO):
    """Puts a checkpoint in its place when it is written.

    Lightning writes to the folder for temporary files and moves the file from there. Between two file systems that is a
    copy, and a process that is killed meanwhile leaves half of ``last.ckpt`` in place of the earlier one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write beside the place, then rename.

        Raises:
            CheckpointError: It cannot be written; an earlier one is as it was.
        """
        place = Path(path)
        partial = place.with_name(f".{place.name}.partial")
        try:
            super().save_checkpoint(checkpoint, partial, storage_options)
            partial.replace(place)
        except (OSError, RuntimeError) as error:  # torch wraps what the system says
            raise CheckpointError(
                f"{place} could not be written ({type(error).__name__}: {error}). Nothing half-written was left. Free "
                "some space or choose another run_dir, and go on with resume_from='last'."
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """Read a checkpoint whose parts have the checksums that torch wrote beside them, which torch does not look at.

        Raises:
            CheckpointError: It is damaged.
        """
        place = Path(path)
        if place.is_file():
            _check_content(place)
        return super().load_checkpoint(path, *args, **options)


def _check_content(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise CheckpointError(
            f"The checkpoint {path} is damaged or no checkpoint: {error}. Resume from another one."
        ) from error
    if damaged is not None:
        raise CheckpointError(
            f"The checkpoint {path} is damaged: its part {damaged} has another content than was written. Resume from "
            "another one."
        )


def checkpoint_plugins(trainer_kwargs: Mapping[str, Any]) -> list[Any]:
    """What the Trainer of a loop gets as plugins: the user's, and ``WholeFiles`` where checkpoints are one file."""
    given = trainer_kwargs.get("plugins") or []
    plugins = list(given) if isinstance(given, (list, tuple)) else [given]
    if trainer_kwargs.get("strategy", "auto") not in ONE_FILE:
        return plugins
    return plugins if any(hasattr(item, "save_checkpoint") for item in plugins) else [*plugins, WholeFiles()]
