"""Hooks that somebody left on a module, or on all modules of torch: they may change numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules import module as all_modules

from interpretune.hashing.content import Content, Noted

COUNTED = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Tables of hooks that run in forwards and backwards; the others run where states are saved and loaded."""
HOOK_TABLES = frozenset(name for name in vars(nn.Module()) if "_hook" in name)


ON_ALL = tuple(f"_global{name}" for name in COUNTED)
"""The same for hooks on all modules of torch."""


def hooks_of(module: nn.Module, ignored: Noted) -> list[tuple[str, Any]]:
    """What is hooked onto a module, but what a library hooks in on the way, and onto all modules, in running order."""
    state, everywhere = vars(module), vars(all_modules)
    parts = [part for table in ON_ALL if everywhere[table] for part in _entries(everywhere, table, Noted())]
    return [*parts, *(part for table in COUNTED if state.get(table) for part in _entries(state, table, ignored))]


def _entries(state: Mapping[str, Any], table: str, ignored: Noted) -> Iterator[tuple[str, Any]]:
    for number, (key, hook) in enumerate(state[table].items()):
        names = str(getattr(hook, "__qualname__", "")).split(".")
        if ignored.of(getattr(hook, "__module__", "")).isdisjoint(names):
            known = [name for name in sorted(state) if name.startswith(f"{table}_")]
            flags = [name for name in known if isinstance(state[name], dict) and key in state[name]]
            yield f".{table}[{number}]", Content("hook", [("", hook), (".flags", flags)])
