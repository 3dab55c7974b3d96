"""Tensors and plain values inside of values, copied and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

Leaves = Mapping[str, Any]
"""Copies of tensors and plain values, by path."""


def copies(values: Any) -> dict[str, Any]:
    """Copies of all tensors, numbers and texts in mappings, lists and value objects; anything else is left out."""
    return dict(_leaves(values, ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor):
        yield path, value.detach().clone()
    elif isinstance(value, (bool, int, float, str)):
        yield path, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    elif attrs.has(type(value)):
        for item in attrs.fields(type(value)):
            yield from _leaves(getattr(value, item.name), f"{path}.{item.name}")


def differing(before: Leaves, now: Leaves) -> list[str]:
    """Paths at which something else stands, or nothing, or something new."""
    return [path for path in {**before, **now} if not _equal(before.get(path), now.get(path))]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return (
            one.shape == other.shape and one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
        )
    return type(one) is type(other) and (one == other or one != one)
