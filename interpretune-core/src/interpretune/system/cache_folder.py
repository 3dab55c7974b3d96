"""Folders in a cache that are either whole or absent.

A folder is built beside its final place, listed in a manifest with a digest of each file, and moved there in one step.
A folder that was cut short, or whose files are no longer what was written, is built again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from interpretune.errors import CacheError
from interpretune.system.plain_files import file_sha256, read_plain
from interpretune.system.whole_file import FORBIDDEN, FULL, refusal, why_not_written

MANIFEST = "interpretune-manifest.json"


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """The cache folder: the argument, else ``$INTERPRETUNE_CACHE``, else ``interpretune`` in the user's cache."""
    if cache_dir:
        return Path(cache_dir).expanduser()
    own = os.environ.get("INTERPRETUNE_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "interpretune"


def is_whole(folder: Path, *, by_content: bool = True) -> bool:
    """Whether a folder is what ``build_once`` made, see ``damage_of``."""
    return damage_of(folder, by_content=by_content) is None


def damage_of(folder: Path, *, by_content: bool = True) -> str | None:
    """What is wrong with a folder, in words that name the file.

    Args:
        folder: One that ``build_once`` made.
        by_content: Compare the content of all files with their digests; else their sizes alone, which costs nothing.

    Returns:
        None where all is as it was written.
    """
    try:
        listed = json.loads(read_plain(folder / MANIFEST))
        entries = [(str(name), int(size), str(sha256)) for name, (size, sha256) in listed.items()]
    except OSError as error:
        return f"{MANIFEST} cannot be read: {error.strerror or error}"
    except (ValueError, AttributeError, TypeError, RecursionError):
        return f"{MANIFEST} is no list of files with their digests"
    for name, size, sha256 in entries:
        damage = _damage_of_file(folder / name, size, sha256 if by_content else None)
        if damage is not None:
            return f"{name} {damage}"
    return None


def _damage_of_file(path: Path, size: int, sha256: str | None) -> str | None:
    try:
        if (found := path.stat().st_size) != size:
            return f"has {found:,} bytes, and {size:,} were written"
        if sha256 is not None and file_sha256(path) != sha256:
            return "has another content than was written"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None


def build_once(folder: Path, build: Callable[[Path], None], *, force: bool = False) -> Path:
    """Return a whole folder, building it if it is absent or damaged; the latter is told in a warning.

    Every call compares the content of the files with their digests, about a second for each 1.5 GB.

    Args:
        folder: Final place.
        build: Fills the folder that it is given. Whatever it raises leaves nothing behind.
        force: Build although a whole folder is there.

    Raises:
        CacheError: The place cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(folder.name + ".lock"))
        lock.acquire()
    except OSError as error:
        raise _not_writable(folder, error) from error
    try:
        there = os.path.lexists(folder)
        damage = damage_of(folder) if there and not force else None
        if damage is not None:
            warnings.warn(f"{folder} was damaged ({damage}): it is made anew.", stacklevel=2)
        if force or not there or damage is not None:
            _build(folder, build)
    finally:
        lock.release()
    return folder


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    for left_behind in folder.parent.glob(f".{folder.name}.*.partial"):  # by a killed process: the lock is ours now
        shutil.rmtree(left_behind, ignore_errors=True)
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    except OSError as error:
        raise _not_writable(folder, error) from error
    try:
        build(partial)
        _put(partial, folder)
    except CacheError:
        raise
    except Exception as error:
        refused = refusal(error)
        ours = refused is not None and _is_ours(refused, partial)
        if ours and refused is not None and refused.errno in (*FULL, *FORBIDDEN):
            raise _not_writable(folder, refused) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, folder: Path) -> None:
    """List the files of a folder that was built, and give it its place."""
    files = {
        path.relative_to(partial).as_posix(): (path.stat().st_size, file_sha256(path))
        for path in sorted(partial.rglob("*"))
        if path.is_file()
    }
    (partial / MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")
    partial.chmod(0o755)
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)
    partial.replace(folder)


def _is_ours(error: OSError, partial: Path) -> bool:
    """Whether it was not a file elsewhere that could not be opened."""
    return error.filename is None or str(error.filename).startswith(str(partial))


def _not_writable(folder: Path, error: OSError) -> CacheError:
    remedy = "set INTERPRETUNE_CACHE or `cache_dir` to another cache folder, which you may write and which has room"
    return CacheError(
        f"{why_not_written(folder, error, remedy)} The cache folder is {folder.parent}; nothing half-made was left."
    )
