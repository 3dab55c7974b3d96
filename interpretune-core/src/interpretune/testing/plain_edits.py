"""Edits that rules make, and what the plain model gives with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interpretune.testing import reference
from interpretune.testing.reference import Hook
from interpretune.testing.workbench import Bench


def turned(activations: Tensor) -> Tensor:
    """Turn every second token's activations over; the first token stays as it is."""
    edited = activations.clone()
    edited[:, 1::2] = 0.5 * activations[:, 1::2].flip(-1) + 0.1
    return edited


def shrunk(activations: Tensor) -> Tensor:
    """Make activations smaller and move them, the first token's aside; this does not commute with ``turned``."""
    edited = activations.clone()
    edited[:, 1:] = 0.7 * activations[:, 1:] + torch.linspace(-0.3, 0.3, activations.shape[-1]).to(activations)
    return edited


def edited_logits(bench: Bench, edits: Sequence[tuple[str, Hook]], model: Any = None) -> Tensor:
    """Logits ``[2, pos, vocab]`` of the plain model for the bench's even rows, with edits made in turn."""
    plain = bench.reference if model is None else model
    return torch.stack([reference.logits_of(plain, row, edits) for row in bench.even_rows])


def logits_turned_at(bench: Bench, name: str) -> Tensor:
    """Those with ``turned`` at one place, computed once for all rules."""
    found: dict[str, Tensor] = bench.notes.setdefault("logits turned at", {})
    if name not in found:
        with torch.no_grad():
            found[name] = edited_logits(bench, [(name, turned)])
    return found[name]
