"""Compares what an adapter gives with what it should give (``RuleBroken``), and values with copies of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from interpretune.testing.rule import RuleBroken, expect

TOLERANCE = 1e-4
"""Largest difference, as a share of the largest number expected."""


def same(found: Any, wanted: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Compare numbers; they may differ by a share of the largest number expected."""
    expect(
        isinstance(found, Tensor),
        f"{what}: {found if found is None else type(found).__name__}",
        f"a tensor {list(wanted.shape)}",
    )
    shape(found, tuple(wanted.shape), what)
    found, wanted = found.detach().float().cpu(), wanted.detach().float().cpu()
    size = float(wanted.abs().max()) if wanted.numel() else 0.0
    worst = float((found - wanted).abs().max()) if wanted.numel() else 0.0
    if not worst <= tolerance * max(size, 1e-3):
        where = [
            int(i) for i in torch.unravel_index((found - wanted).abs().nan_to_num(torch.inf).argmax(), wanted.shape)
        ]
        raise RuleBroken(
            f"{what}: off by {worst:.3g} at {where}, where {float(wanted[tuple(where)]):.4g} is expected and "
            f"{float(found[tuple(where)]):.4g} was given",
            f"agreement within {tolerance:g} of the largest number, {size:.3g}",
        )


def shape(found: Tensor, wanted: tuple[int, ...], what: str) -> None:
    """Compare a shape."""
    expect(tuple(found.shape) == wanted, f"{what}: shape {list(found.shape)}", f"shape {list(wanted)}")


def logits_in(output: Any, what: str) -> Tensor:
    """The logits in what a forward returned."""
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise RuleBroken(
            f"{what} returned {output if output is None else type(output).__name__}",
            "logits [batch, pos, vocab], or an object with the attribute logits",
        )
    return logits


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
