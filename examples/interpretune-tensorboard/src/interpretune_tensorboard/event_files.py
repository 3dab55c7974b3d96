"""Event files, which appear in the log folder when they are complete."""

from __future__ import annotations

import itertools
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpretune import OutputError, model_lock
from interpretune_tensorboard.tracked_module import TrackedModule

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

UNFINISHED = "unfinished"
"""TensorBoard reads files with ``tfevents`` in their names only."""


def make_log_folder(folder: Path) -> None:
    """Make the folder that sessions share.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        Path(folder).expanduser().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(folder, error) from error


def write_run(module: TrackedModule, name: str, write: Callable[[SummaryWriter], None]) -> Path:
    """Write one run of TensorBoard into the folder of a session.

    Args:
        module: The session's module.
        name: What the run is called; a number is added where the session has one of that name.
        write: Adds all that is to be in the run.

    Returns:
        The run's folder, with a single event file.

    Raises:
        OutputError: The log folder cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter

    cfg: Any = module.it_cfg
    with tempfile.TemporaryDirectory(prefix="interpretune-tensorboard-") as elsewhere:
        writer = SummaryWriter(elsewhere)
        try:
            write(writer)
        finally:
            writer.close()
        [written] = Path(elsewhere).iterdir()
        try:
            return _put(written, module, Path(cfg.tensorboard_dir).expanduser(), name)
        except OSError as error:
            raise _refused(cfg.tensorboard_dir, error) from error


def _put(written: Path, module: TrackedModule, log_folder: Path, name: str) -> Path:
    with model_lock(module.model):  # analyses of two threads may end at once
        session = module.tensorboard_folder
        if session is None:
            session = _new_folder(log_folder / f"session-{number:03}" for number in itertools.count(1))
            module.tensorboard_folder = session
    plain = re.sub(r"[^\w.-]+", "_", name).strip(".") or "run"
    names = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
    run = _new_folder(session / item for item in names)
    try:
        shutil.copyfile(written, run / UNFINISHED)
        (run / UNFINISHED).rename(run / written.name)
    except BaseException:
        shutil.rmtree(run, ignore_errors=True)
        raise
    return run


def _new_folder(candidates: Iterable[Path]) -> Path:
    """The first that nobody has, made: of two processes that try the same, one gets it."""
    for folder in candidates:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("there is always a next number")


def _refused(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"TensorBoard's log folder {folder} cannot be written ({error}). Set tensorboard_dir of the module's "
        "configuration to a folder that can be, or to None."
    )
