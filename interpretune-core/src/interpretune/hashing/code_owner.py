"""Whose code something is: a library's or core's, known by version or source, or somebody's own, which is followed."""

from __future__ import annotations

import sys
import weakref
from types import FunctionType, ModuleType
from typing import Any

from interpretune.hashing.code_origin import CORE, version_of


def origin_of(module: ModuleType | None) -> str | None:
    """What a module's code counts by beside names; None: it is somebody's own and is followed."""
    if module is None:
        return None
    return CORE if module.__name__.partition(".")[0] == CORE else version_of(module)


def module_of(function: FunctionType) -> ModuleType | None:
    """The module in which a function was written, whatever it says of itself."""
    module = sys.modules.get(function.__globals__.get("__name__", ""))
    return module if module is not None and vars(module) is function.__globals__ else None


def home_of(kind: type) -> ModuleType | None:
    """The module in which a class is found under its name; None: it was made elsewhere."""
    module = sys.modules.get(kind.__module__)
    found: Any = module
    for name in kind.__qualname__.split("."):
        found = getattr(found, "__dict__", {}).get(name)
    return module if found is kind else None


def own_bases(kind: type) -> tuple[type, ...]:
    """Classes out of the method resolution order of one that are somebody's own."""
    if kind in _libraries:
        return ()
    found = tuple(base for base in kind.__mro__ if is_heap(base) and origin_of(home_of(base)) is None)
    if not found:
        _libraries.add(kind)
    return found


_libraries: weakref.WeakSet[type] = weakref.WeakSet()
"""Classes that have no base of somebody's own."""


def is_heap(kind: type) -> bool:
    """Whether a class was made while Python ran; the others are of C and have no code."""
    return bool(kind.__flags__ & 1 << 9)
