"""How much rounding alone changes an effect: measured with the model itself, and shown beside the results.

A forward in 16 bits has a larger error than one in 32, and an effect is a difference of two. Monte Carlo arithmetic
(Parker 1997) measures this error without a copy of the model in higher precision: a forward runs again with random
roundings at hook points of every block, by up to half of the last digit, and is compared with the one before.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interpretune.activations.hook_names import ATTN_Z, MLP_IN, RESID_POST, RESID_PRE, in_layer, split_layer
from interpretune.system.caller import level_of_caller

if TYPE_CHECKING:
    from interpretune.activations.edits import Edit
    from interpretune.activations.inputs import ModelInputs, Points
    from interpretune.replay.prefill import Prefill

ROUNDED = frozenset({RESID_PRE, ATTN_Z, MLP_IN, RESID_POST})
"""Hook points of a block at which values are rounded at random."""
REPEATS = 4
"""How often the longest and the shortest example run again, in one forward."""
SMALL = 0.1
"""Noise is small if it is at most this share of the largest effect on one example."""


def is_measured(batch_idx: int, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether the noise is measured in a batch: the first, and in 16 bits the second, third, fifth, ninth, and so on.

    Args:
        batch_idx: Index in the split.
        dtype: Of the logits. With more than 16 bits the noise is small, and one measurement is enough.
    """
    return batch_idx & (batch_idx - 1) == 0 and (batch_idx == 0 or dtype.itemsize <= 2)


@torch.no_grad()
def measure_noise(clean: Prefill, objective: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Standard deviation that rounding alone gives an effect, in units of the objective.

    That of the objective of the spliced run, times the square root of 2, as an effect is the difference of two.

    Args:
        clean: The spliced run, with one point for each example.
        objective: From logits ``[n, vocab]`` and their examples ``[n]`` to ``[n]``.
    """
    from interpretune.activations.inputs import Points  # which needs the libraries of models; a number's text does not

    sizes = clean.inputs.attention_mask.sum(-1)
    examples = torch.stack([sizes.argmax(), sizes.argmin()]).repeat(REPEATS)
    points = Points(torch.arange(len(examples), device=examples.device), clean.points.positions[examples])
    logits = rounded_logits(clean, clean.inputs.select(examples), points)
    return noise_by(objective(logits, examples), objective(clean.logits[examples], examples))


def noise_by(rounded: Tensor, clean: Tensor) -> float:
    """Standard deviation of an effect, from objectives ``[n]`` with random roundings and without."""
    return math.sqrt(2) * (rounded.double() - clean.double()).square().mean().sqrt().item()


@torch.no_grad()
def rounded_logits(clean: Prefill, inputs: ModelInputs, points: Points) -> Tensor:
    """Logits at points of a spliced run in which values are rounded at random, ``[p, vocab]``."""
    backend = clean.backend
    draw = torch.Generator(device=clean.logits.device).manual_seed(0)
    names = [name for name in backend.hook_point_names() if (part := split_layer(name)) and part[1] in ROUNDED]
    with backend.hooked({name: _rounding(draw) for name in names if name == in_layer(*_known(name))}):
        edits, _ = backend.splice_edits(inputs, list(clean.latent_models.values()))
        return backend.forward(inputs, edits, points)


def _known(name: str) -> tuple[int, str]:
    found = split_layer(name)
    assert found is not None
    return found


def _rounding(draw: torch.Generator) -> Edit:
    def apply(activations: Tensor) -> Tensor:
        wide = activations.double() if activations.device.type != "mps" else activations.float()
        share = torch.rand(wide.shape, generator=draw, dtype=wide.dtype, device=wide.device) - 0.5
        return (wide * (1 + torch.finfo(activations.dtype).eps * share)).to(activations.dtype)

    return apply


def noise_of(measured: Iterable[Tensor | float | None]) -> float | None:
    """The largest noise measured in batches of an analysis; None if it was not measured."""
    return max((float(item) for item in measured if item), default=None)


def noise_text(noise: float | None, unit: str = "logits") -> str:
    """The text for titles and below tables; empty if nothing was measured."""
    return "" if noise is None else f"rounding alone changes an effect by about {noise:.2g} {unit}".rstrip()


def warn_of_noise(noise: float | None, largest: float, unit: str = "logits") -> None:
    """Warn if noise is more than ``SMALL`` of the largest effect on one example.

    Args:
        noise: As measured.
        largest: The largest effect on one example.
        unit: What both are counted in.
    """
    if noise is not None and noise > SMALL * largest > 0:
        warnings.warn(
            f"Rounding alone changes an effect on one example by about {noise:.2g} {unit}, and the largest is "
            f"{largest:.2g}: effects are known only roughly. Run the model in float32, or look at means over many "
            "examples.",
            UserWarning,
            stacklevel=level_of_caller(),
        )
