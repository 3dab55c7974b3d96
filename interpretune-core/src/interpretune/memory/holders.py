"""What refers to an object, and so keeps its memory."""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from interpretune.memory.storages import is_of


def holders_of(value: Any) -> tuple[str, ...]:
    """What refers to an object: ``Linear.weight``, ``acts in __main__``, ``dict['acts']``, ``list of 3``.

    Args:
        value: Anything that the garbage collector knows of, such as a tensor, a module or a list. Local variables of
            functions that are running are not told.
    """
    return holders_of_each([value])[0]


def holders_of_each(values: Sequence[Any], besides: Sequence[Any] = ()) -> list[tuple[str, ...]]:
    """The same for each of several objects, in the time of one; holders that stand in ``besides`` are not told."""
    own = {id(values), *map(id, besides)}
    found: dict[int, list[str]] = {id(value): [] for value in values}
    modules = [(name, item) for name, item in list(sys.modules.items()) if is_of(item, types.ModuleType)]
    told = {id(vars(item)): "{} in " + name for name, item in reversed(modules)}  # by its first name, such as __main__
    for item in gc.get_objects():
        if is_of(item, nn.Module):
            told |= {id(kept): type(item).__name__ + ".{}" for kept in (item._parameters, item._buffers)}
    for holder in gc.get_referrers(*values):
        if id(holder) not in own and not is_of(holder, types.FrameType):
            for key, words in _told(holder, found, told):
                found[key].append(words)
    return [tuple(sorted({*found[id(value)]})) for value in values]


def _told(holder: Any, wanted: Mapping[int, Any], told: Mapping[int, str]) -> Iterator[tuple[int, str]]:
    """Which of the wanted objects something refers to, and what it is in words.

    Args:
        holder: What refers to them.
        wanted: By id.
        told: How an entry of certain dictionaries is told, by their id, with ``{}`` for its name.
    """
    if is_of(holder, dict):
        words = told.get(id(holder))
        for name, item in list(holder.items()):
            if id(item) in wanted:
                yield id(item), words.replace("{}", str(name), 1) if words else f"dict[{name!r}]"
        return
    size = f" of {len(holder)}" if is_of(holder, (list, tuple, set, frozenset)) else ""
    words = "a closure" if is_of(holder, types.CellType) else f"{type(holder).__name__}{size}"
    for item in gc.get_referents(holder):
        if id(item) in wanted:
            yield id(item), words
