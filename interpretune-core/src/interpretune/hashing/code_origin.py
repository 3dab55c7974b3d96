"""Where code is from: a library of a known version, a package known by its source, or somebody's own modules.

A module counts by the version of its distribution where that distribution lists it among its files and was not
installed in editable mode. Interpretune's packages and those of stacked adapters count by the text of their source
where they are installed in editable mode or not at all. Anything but libraries and core, a script, a notebook, an
adapter, is followed function by function beside (``interpretune.hashing.code_state``): what runs may have been changed
since it was imported.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import platform
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from types import ModuleType

from attrs import frozen

CORE = "interpretune"
"""Whoever makes a key has the source of core in it, once (``source_of``); single functions need only their names."""

_noted: dict[str, tuple[ModuleType, dict[str, str]]] = {}
"""Packages that count by source: the module as it was imported, and the hashes of its files at that time.

Code is shared by all sessions of a process, hence so is what is known of it.
"""


@frozen
class Source:
    """The source of a package.

    Attributes:
        sha256: Of all its Python files.
        edited: Files that are not what they were when the package was imported: what runs is not what is there.
    """

    sha256: str
    edited: tuple[str, ...] = ()


def note_source(package: str) -> None:
    """Note the source of an adapter's package when it is imported; what a distribution lists among its files is not.

    Args:
        package: Top-level name; single modules are followed as somebody's own code and need not be noted.
    """
    module = sys.modules.get(package)
    if module is None or not hasattr(module, "__path__") or version_of(module) is not None:
        return
    if package not in _noted or _noted[package][0] is not module:
        _noted[package] = (module, _hashes(module))


def source_of(package: str) -> Source | None:
    """The source of a noted package; None where it counts by version or as somebody's own code."""
    if package == CORE:
        note_source(CORE)
    module, before = _noted.get(package, (None, {}))
    if module is None or sys.modules.get(package) is not module:
        return None
    now = _hashes(module)
    edited = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    told = json.dumps(sorted(now.items()))
    return Source(hashlib.sha256(told.encode()).hexdigest(), tuple(edited))


def version_of(module: ModuleType) -> str | None:
    """Distribution and version that a module counts by; None: by its code."""
    name, file = module.__name__, getattr(module, "__file__", None)
    if file is None:
        builtin = getattr(getattr(module, "__spec__", None), "origin", None) in ("built-in", "frozen")
        return _PYTHON if builtin or name in sys.builtin_module_names else None
    return version_of_file(name.partition(".")[0], file)


def version_of_name(package: str) -> str | None:
    """``version_of`` a top-level module that need not be imported."""
    if package in sys.modules:
        module = sys.modules[package]
        return version_of(module) if isinstance(module, ModuleType) else None  # None: imports of it are blocked
    if package in sys.builtin_module_names:
        return _PYTHON
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    return None if spec is None or spec.origin is None else version_of_file(package, spec.origin)


_PYTHON = f"Python {platform.python_version()}"
_STDLIB = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))


@functools.cache
def version_of_file(top: str, file: str) -> str | None:
    """``version_of`` a module by its top-level name and its file."""
    owner = next((found for found in _likely_owners(top) if _lists(found, file)), None)
    if owner is None and top in sys.stdlib_module_names and any(_below(folder, file) for folder in _STDLIB):
        return _PYTHON
    if owner is None and any(_below(root, file) for root in _roots(tuple(sys.path))):
        owner = next((found for found in distributions() if _lists(found, file)), None)
    if owner is None:
        return None
    about = json.loads(owner.read_text("direct_url.json") or "{}")
    if about.get("dir_info", {}).get("editable"):
        return None
    version = f"{owner.metadata['Name']} {owner.version}"
    if about:  # from a folder or a commit, where an edit need not change the version
        version += " " + hashlib.sha256((owner.read_text("RECORD") or "").encode()).hexdigest()[:16]
    return version


@functools.lru_cache(maxsize=8)
def _roots(_search_path: tuple[str, ...]) -> frozenset[str]:
    """Folders in which something is installed."""
    return frozenset(str(found.locate_file("")) for found in distributions())


def _likely_owners(top: str) -> Iterator[Distribution]:
    for name in dict.fromkeys((top, top.replace("_", "-"))):
        with contextlib.suppress(PackageNotFoundError):
            yield distribution(name)


def _below(folder: str, file: str) -> list[str]:
    """Names that a file has in a folder: installed files and whole packages may be links to somewhere else."""
    paths = {os.path.abspath(file), os.path.realpath(file)}  # noqa: PTH100 - pathlib resolves links with dots
    roots = {os.path.abspath(folder), os.path.realpath(folder)}  # noqa: PTH100
    below = (Path(path).relative_to(root) for path in paths for root in roots if Path(path).is_relative_to(root))
    return sorted({name.as_posix() for name in below})


def _lists(owner: Distribution, file: str) -> bool:
    """Whether a distribution has a file, as its list of files says."""
    root = str(owner.locate_file(""))
    names = _below(root, file)
    if not names:
        return False
    listed = owner.read_text("RECORD")
    if listed is None:  # packages of operating systems have no list; they lie in a folder for installed packages only
        tops = (owner.read_text("top_level.txt") or owner.metadata["Name"] or "").replace("-", "_").split()
        if Path(root).resolve().name not in ("site-packages", "dist-packages"):
            return False
        return any(name.split("/")[0].removesuffix(".py") in tops for name in names)
    return any(f"\n{name}," in f"\n{listed}" for name in names)


def _hashes(module: ModuleType) -> dict[str, str]:
    found = {}
    for folder in dict.fromkeys(module.__path__):
        for file in _python_files(folder):
            status = file.stat()
            name = file.path.removeprefix(folder).replace(os.sep, "/").lstrip("/")
            found[name] = _hash(file.path, status.st_mtime_ns, status.st_size)
    return found


def _python_files(folder: str) -> Iterator[os.DirEntry[str]]:
    """Each key asks for hundreds of files, and twice as much lies in folders of bytecode."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:  # where there is none there are no files
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                if entry.name.endswith(".py"):
                    yield entry
            elif entry.name != "__pycache__":
                yield from _python_files(entry.path)


@functools.lru_cache(maxsize=4096)
def _hash(path: str, _mtime_ns: int, _size: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
