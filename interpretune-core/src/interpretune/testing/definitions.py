"""Functions and classes that all code of a process shares, and who replaced one of them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

SHARED = (
    *("torch", "transformers", "numpy", "datasets", "tokenizers", "safetensors"),
    *("builtins", "contextlib", "copy", "functools", "inspect", "io", "json", "logging", "math", "os", "pickle"),
    *("random", "threading", "time", "warnings", "weakref"),
)
"""Top-level modules whose functions and classes nobody may replace."""

_MISSING = object()


class Definitions:
    """What the modules of ``SHARED`` that are imported define at one moment, and what the classes among it define."""

    def __init__(self) -> None:
        self.modules = {
            name: (module, {key: value for key, value in vars(module).items() if callable(value)})
            for name, module in list(sys.modules.items())
            if name.partition(".")[0] in SHARED and isinstance(module, ModuleType)
        }
        classes = {
            value for _, defined in self.modules.values() for value in defined.values() if isinstance(value, type)
        }
        self.classes = {cls: dict(vars(cls)) for cls in classes if _root(cls.__module__) in SHARED}
        self._known = {id(value) for _, defined in self.modules.values() for value in defined.values()}

    def replaced(self, own: Sequence[Path]) -> list[str]:
        """What was replaced or deleted since then, by name.

        Left out is what other libraries put there when they are imported, and what a library does to itself: torch
        replaces functions of its own when its compiler is imported.
        """
        return sorted(name for name, root, value in self._differences() if self._counts(root, value, own))

    def _differences(self) -> Iterator[tuple[str, str, Any]]:
        for name, (module, defined) in self.modules.items():
            current = sys.modules.get(name)
            swapped = current is not module  # libraries do so to themselves: what is asked for lazily may be missing
            if swapped:
                yield f"the module {name}", _root(name), _MISSING if current is None else current
            now = vars(current) if current is not None else {}
            for key, value in defined.items():
                new = now.get(key, value if swapped else _MISSING)
                if new is not value:
                    yield f"{name}.{key}", _root(name), new
        for cls, members in self.classes.items():
            for key, value in _changed(cls, members).items():
                yield f"{cls.__module__}.{cls.__qualname__}.{key}", _root(cls.__module__), value

    def _counts(self, root: str, value: Any, own: Sequence[Path]) -> bool:
        if value is _MISSING:
            return True
        maker = _file_of(value)
        if maker is None or any(maker.is_relative_to(place) for place in own):
            return True
        return id(value) in self._known and _root(getattr(value, "__module__", None) or root) == root


def _changed(cls: type, before: Mapping[str, Any]) -> dict[str, Any]:
    """Members that do something and are others now; new ones count where they hide an inherited one."""
    now = dict(vars(cls))
    found = {}
    for key in {**before, **now}:
        value, old = now.get(key, _MISSING), before.get(key, _MISSING)
        if value is old or key.startswith(("_abc_", "__annotat", "__doc__")):
            continue
        does = callable(old) or isinstance(old, (property, classmethod, staticmethod))
        hides = old is _MISSING and callable(value) and any(hasattr(base, key) for base in cls.__bases__)
        if does or hides:
            found[key] = value
    return found


def _file_of(value: Any) -> Path | None:
    """The file that a function, or the class of an object, was written in; None: nobody can tell."""
    if isinstance(value, (classmethod, staticmethod)):
        value = value.__func__
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, functools.partial):
        return None
    if type(value) is FunctionType:
        return Path(value.__code__.co_filename)
    if isinstance(value, ModuleType):
        module: Any = value
    else:
        written = value if isinstance(value, type) else type(value)
        module = sys.modules.get(written.__module__)
    file = getattr(module, "__file__", None)
    return Path(file) if file else None


def _root(name: str) -> str:
    return name.partition(".")[0]
