"""What refers to an object, and so keeps its memory."""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn


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
    owners = {
        id(vars(module)): f" in {name}" for name, module in list(sys.modules.items()) if hasattr(module, "__dict__")
    }
    for item in gc.get_objects():
        if issubclass(type(item), nn.Module):
            owners |= {id(kept): type(item).__name__ for kept in (item._parameters, item._buffers)}
    for holder in gc.get_referrers(*values):
        if id(holder) not in own and not isinstance(holder, types.FrameType):
            for key, told in _told(holder, found, owners):
                found[key].append(told)
    return [tuple(dict.fromkeys(found[id(value)])) for value in values]


def _told(holder: Any, wanted: Mapping[int, Any], owners: Mapping[int, str]) -> Iterator[tuple[int, str]]:
    """Which of the wanted objects something refers to, and what it is in words."""
    if isinstance(holder, dict):
        owner = owners.get(id(holder), "dict")
        for name, item in list(holder.items()):
            if id(item) in wanted:
                told = f"{name}{owner}" if owner.startswith(" in ") else f"dict[{name!r}]"
                yield id(item), told if owner == "dict" or owner.startswith(" in ") else f"{owner}.{name}"
        return
    size = f" of {len(holder)}" if isinstance(holder, list | tuple | set | frozenset) else ""
    told = "a closure" if isinstance(holder, types.CellType) else f"{type(holder).__name__}{size}"
    for item in gc.get_referents(holder):
        if id(item) in wanted:
            yield id(item), told
