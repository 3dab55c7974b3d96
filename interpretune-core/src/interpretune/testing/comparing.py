"""Compares what an adapter gives with what it should give."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interpretune.testing.rule import RuleBroken, expect

TOLERANCE = 1e-4
"""Largest difference, as a share of the largest number expected."""


def same(found: Any, wanted: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Compare numbers.

    Args:
        found: What the adapter gave.
        wanted: What it should have given.
        what: Names it in the message.
        tolerance: Largest difference, as a share of the largest number expected.

    Raises:
        RuleBroken: Another shape, or other numbers.
    """
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
    """Compare a shape.

    Raises:
        RuleBroken: It is another.
    """
    expect(tuple(found.shape) == wanted, f"{what}: shape {list(found.shape)}", f"shape {list(wanted)}")


def logits_in(output: Any, what: str) -> Tensor:
    """The logits in what a forward returned.

    Raises:
        RuleBroken: There are none.
    """
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise RuleBroken(
            f"{what} returned {output if output is None else type(output).__name__}",
            "logits [batch, pos, vocab], or an object with the attribute logits",
        )
    return logits
