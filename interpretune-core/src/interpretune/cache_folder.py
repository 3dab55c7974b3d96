"""Folders in a cache that are either whole or absent.

A folder is built beside its final place, listed in a manifest, and moved there in one step. A folder that was cut
short, or whose files no longer have their listed sizes, is built again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from interpretune.errors import CacheError

MANIFEST = "interpretune-manifest.json"


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """The cache folder: the argument, else ``$INTERPRETUNE_CACHE``, else ``interpretune`` in the user's cache."""
    if cache_dir:
        return Path(cache_dir).expanduser()
    own = os.environ.get("INTERPRETUNE_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "interpretune"


def is_whole(folder: Path) -> bool:
    """Whether a folder has a manifest and every listed file has its listed size."""
    try:
        listed: dict[str, int] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in listed.items())
    except (OSError, ValueError, AttributeError):
        return False


def build_once(folder: Path, build: Callable[[Path], None], *, force: bool = False) -> Path:
    """Return a whole folder, building it if it is absent or damaged.

    Args:
        folder: Final place.
        build: Fills the folder that it is given. Whatever it raises leaves nothing behind.
        force: Build although a whole folder is there.

    Returns:
        ``folder``.

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
        if force or not is_whole(folder):
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
        files = {
            path.relative_to(partial).as_posix(): path.stat().st_size
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        }
        (partial / MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")
        partial.chmod(0o755)
        if folder.is_dir():
            shutil.rmtree(folder)
        else:
            folder.unlink(missing_ok=True)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _not_writable(folder: Path, error: OSError) -> CacheError:
    return CacheError(
        f"The cache folder {folder.parent} cannot be written ({error.strerror or error}). Set INTERPRETUNE_CACHE or "
        "`cache_dir` to a folder that you may write."
    )
