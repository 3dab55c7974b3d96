"""Folders, files and locks of a store: whole or absent, with names that stay inside, and errors that say what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from interpretune.errors import StoreBusyError, StoreError
from interpretune.system.whole_file import FORBIDDEN, FULL, PARTIAL, whole_file as file_that_appears_whole

MANIFEST = "manifest.json"
MANIFEST_BYTES = 64 << 20
"""The largest manifest that is read."""
SHARDS, JOURNAL, TABLES, LOCKS = "shards", "journal", "tables", "locks"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SHARD = re.compile(r"r\d{5}-(\d{6,})\.parquet")


def check_name(name: object, what: str) -> str:
    """A name that becomes part of a path.

    Raises:
        StoreError: It could leave the store's folder, or is no name that every file system takes.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise StoreError(
            f"{name!r} is no name for {what}: letters, digits, _, - and single dots are, without path separators."
        )
    return name


def write_refused(path: Path, error: OSError) -> StoreError:
    """The error of a file or folder that the operating system did not let us write."""
    reason = error.strerror or str(error)
    kept = "What was written before is kept and can be read."
    if error.errno in FULL:
        return StoreError(
            f"There is no room for {path} ({reason}). {kept} Free some space and start the same run again: it goes on "
            "where it stopped."
        )
    if error.errno in FORBIDDEN:
        return StoreError(
            f"{path} may not be written ({reason}). {kept} Choose a folder that you may write, or change the rights of "
            f"{path.parent}."
        )
    return StoreError(f"{path} could not be written ({reason}). {kept} Look at the folder and start the run again.")


def read_refused(path: Path, error: Exception) -> StoreError:
    """The error of a file that is damaged or gone."""
    reason = " ".join(str(error).split())
    return StoreError(
        f"{path} cannot be read ({reason}). Copy it from where the store comes from, or run the analysis again into "
        "another folder."
    )


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A file of a store, see ``interpretune.system.whole_file``; ``StoreError`` if it cannot be written."""
    try:
        with file_that_appears_whole(path, durable=durable) as partial:
            yield partial
    except OSError as error:
        raise write_refused(path, error) from error


def make_folders(folder: Path) -> None:
    """The folders of a store."""
    try:
        for name in (SHARDS, JOURNAL, TABLES, LOCKS):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_refused(folder, error) from error


def remove_partials(*folders: Path, start: str = "") -> None:
    """Remove what a killed writer left unfinished; the caller holds the lock under which it was written."""
    for folder in folders:
        for path in folder.glob(f".{start}*{PARTIAL}"):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file that may be gone already."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise write_refused(path, error) from error


def rank_prefix(rank: int) -> str:
    """What the names of all files of a rank begin with."""
    return f"r{rank:05d}-"


def shard_number(file: str) -> int:
    """The number in the name of a shard, which begins with ``rank_prefix``; -1: it is named otherwise."""
    found = _SHARD.fullmatch(file.rpartition("/")[2])
    return int(found[1]) if found else -1


def hold_rank(folder: Path, rank: int) -> FileLock:
    """Become the one writer of a rank (else ``StoreBusyError``), until the lock is released or the process ends."""
    path = folder / LOCKS / f"rank-{rank:05d}.lock"
    lock = FileLock(path, thread_local=False)  # it is released by whichever thread closes
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreBusyError(
            f"Another writer is at work on rank {rank} of {folder}. Wait for it or stop it; processes that share a "
            "store each need a rank of their own."
        ) from error
    except OSError as error:
        raise write_refused(path, error) from error
    return lock


def check_nobody_writes(folder: Path) -> None:
    """Refuse to go on while any rank has a writer; the caller holds the manifest, so that none can begin."""
    for path in sorted((folder / LOCKS).glob("rank-*.lock")):
        hold_rank(folder, int(path.stem.removeprefix("rank-"))).release()


@contextmanager
def holding_manifest(folder: Path) -> Iterator[None]:
    """Keep other writers from the manifest for a moment; a thread that holds it may do so again.

    Who wants more locks takes this one first, and locks of ranks without waiting for them.
    """
    path = folder / LOCKS / "manifest.lock"
    lock = FileLock(path, is_singleton=True)
    try:
        lock.acquire()
    except OSError as error:
        raise write_refused(path, error) from error
    try:
        yield
    finally:
        lock.release()
