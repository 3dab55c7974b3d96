"""Imports an adapter in a process that is made for it, and tells what that changed: ``python -m`` this module."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


def watched_import(target: str, own: Sequence[str]) -> dict[str, Any]:
    """Import what an entry point names, and compare.

    Returns:
        ``seconds``; ``changes`` of settings and ``replaced`` functions, as phrases; ``already``: whether the module was
        imported before anybody asked for it.
    """
    from interpretune.testing.definitions import Definitions
    from interpretune.testing.global_state import GlobalState

    already = target.partition(":")[0] in sys.modules
    state, definitions, watcher = GlobalState(), Definitions(), _LibraryWatcher(own)
    before = _loose()
    start = time.perf_counter()
    sys.meta_path.insert(0, watcher)
    try:
        pkgutil.resolve_name(target)
    finally:
        sys.meta_path.remove(watcher)
    seconds = time.perf_counter() - start
    now = _loose()
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    loose = [": ".join(key) for key in changed if watcher.results.get(key, before.get(key)) != now.get(key)]
    return {
        "seconds": seconds,
        "changes": [*state.changes_of_settings(), *sorted(loose)],
        "replaced": definitions.replaced([place for name in own for place in _places(name)]),
        "already": already,
    }


class _LibraryWatcher:
    """Notes which settings other libraries set for themselves when the adapter imports them."""

    def __init__(self, own: Sequence[str]) -> None:
        self.results: dict[tuple[str, str], Any] = {}
        self._own = (*own, "interpretune") if "interpretune" not in own else tuple(own)
        self._inside = False

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """What the other finders find; a library's module is watched while it runs."""
        if self._inside or name.partition(".")[0] in self._own:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find and finder is not self else None
            if spec is not None:
                self._watch(spec.loader)
                return spec
        return None

    def _watch(self, loader: Any) -> None:
        if isinstance(loader, type) or not hasattr(loader, "exec_module"):  # built-in and frozen modules set nothing
            return
        execute = loader.exec_module

        def watched(module: ModuleType) -> None:
            loader.exec_module = execute
            before, drawn, self._inside = _loose(), random.getstate(), True
            try:
                execute(module)
            finally:
                self._inside = False
                random.setstate(drawn)  # rich.style for one draws a number when it is imported
                now = _loose()
                self.results |= {key: now.get(key) for key in {**before, **now} if before.get(key) != now.get(key)}

        loader.exec_module = watched


def _loose() -> dict[tuple[str, str], Any]:
    """Settings that libraries set for themselves, one by one."""
    from interpretune.testing.global_state import settings_of_libraries

    return dict(_entries(settings_of_libraries()))


def _entries(settings: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Any]]:
    for kind, value in settings.items():
        items = value if isinstance(value, Mapping) else Counter(map(repr, value))
        for name, item in items.items():
            yield (kind, str(name) or "root"), item


def _places(name: str) -> list[Path]:
    spec = importlib.util.find_spec(name)
    if spec is None:
        return []
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    return folders or ([Path(spec.origin)] if spec.origin else [])


if __name__ == "__main__":
    start = time.perf_counter()
    for library in ("datasets", "torch", "transformers", "transformers.models.llama", "transformers.generation.utils"):
        importlib.import_module(library)
    target, own = sys.argv[1], sys.argv[2:]
    if "interpretune" not in own:
        importlib.import_module("interpretune.adapters.core")
    usual = time.perf_counter() - start
    found = json.dumps({**watched_import(target, own), "usual": usual})
    sys.stdout.write(f"{found}\n")  # print may be another
