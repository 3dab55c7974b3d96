"""Files that appear at their place when they are whole, and why one could not be written."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from interpretune.errors import OutputError

PARTIAL = ".partial"
"""What the name of a file ends with while it is written."""
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A file that takes its place when the block ends; after an error nothing is left, and what was there stays.

    Args:
        path: Final place.
        durable: Wait until it is on the disk. Without, a killed process loses nothing, a power cut the last seconds.

    Yields:
        The place to write it to.

    Raises:
        OSError: It cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{PARTIAL}")
    try:
        yield partial
        if durable:
            _sync(partial)
        partial.replace(path)
        if durable and os.name == "posix":  # elsewhere folders cannot be opened
            _sync(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def output_file(path: Path, remedy: str) -> Iterator[Path]:
    """The same for what is written for a person, in a folder that is made where it is not there.

    Args:
        path: Final place.
        remedy: How to have it elsewhere, as in "choose another folder".

    Raises:
        OutputError: It cannot be written.
    """
    with writing(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            yield partial


@contextmanager
def writing(path: Path, remedy: str) -> Iterator[None]:
    """Say of a failure to write a file what to do, as ``OutputError``."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(why_not_written(path, error, remedy)) from error


def why_not_written(path: Path, error: BaseException, remedy: str) -> str:
    """What failed with a file or folder that could not be written, and what to do: the remedy, or to make room."""
    refused = refusal(error)
    reason = (refused.strerror if refused is not None else None) or " ".join(str(error).split()) or type(error).__name__
    if refused is not None and refused.errno in FULL:
        return f"There is no room for {path} ({reason}). Free some space, or {remedy}."
    forbidden = refused is not None and refused.errno in FORBIDDEN
    done = "may not be written" if forbidden else "could not be written"
    return f"{path} {done} ({reason}). {remedy[0].upper()}{remedy[1:]}."


def refusal(error: BaseException) -> OSError | None:
    """What of an error and its causes says that the operating system let nothing be written; None: nothing does.

    Libraries that write by themselves wrap it, or keep no more than its text.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (*FULL, *FORBIDDEN):
            return cause
        for number in FULL:
            if os.strerror(number) in str(cause):
                return OSError(number, os.strerror(number))
        cause = cause.__cause__ or cause.__context__
    return error if isinstance(error, OSError) else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
