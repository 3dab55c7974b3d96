"""What units are set to: zero, a mean, what they are in the corrupted run, or given numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from interpretune.errors import AnalysisError
from interpretune.questions.prompt_row import brief
from interpretune.questions.units import UnitSet

NamedValue = Literal["zero", "mean", "corrupted"]
Value = NamedValue | float | Mapping[str, Tensor]
"""A name, a number for all latents, or a number for each latent ``[d_sae]`` of each unit set, by its name."""

CHOICES = (
    f"units are set to one of {', '.join(get_args(NamedValue))}, to a finite number, or to tensors [d_sae] by the name "
    "of the unit set"
)

Named = Mapping[str, Tensor]
"""Something of each unit set, by its name."""


def checked_value(value: Any, sets: Sequence[UnitSet]) -> Value:
    """What units are set to: a name, a plain number, or tensors.

    Raises:
        AnalysisError: There is no such value, a number is not finite, or given numbers do not fit the unit sets.
    """
    if isinstance(value, Mapping):
        given = {name: torch.as_tensor(numbers) for name, numbers in value.items()}
        widths = {item.name: (item.dictionary.d_sae,) for item in sets}
        shapes = {name: tuple(numbers.shape) for name, numbers in given.items()}
        if shapes != widths:
            raise AnalysisError(f"Values are given of the shapes {shapes}; the unit sets have {widths}.")
        if broken := [name for name, numbers in given.items() if not numbers.isfinite().all()]:
            raise AnalysisError(f"Values given for {broken[0]} are NaN or infinite.")
        return given
    if isinstance(value, str) and value in get_args(NamedValue):
        return cast("NamedValue", value)
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise AnalysisError(f"Units cannot be set to {brief(value)}: {CHOICES}.")


def set_values(
    value: Value, clean: Named, corrupted: Callable[[], Named], mean: Callable[[], Named]
) -> dict[str, Tensor]:
    """What the latents of unit sets are set to at points, ``[p, d_sae]`` by name.

    Args:
        value: What they are set to.
        clean: Latents in the clean run.
        corrupted: Those in the run of the corrupted prompts.
        mean: Their means, ``[d_sae]``.
    """
    if isinstance(value, (int, float)):
        return {name: torch.full_like(latents, value) for name, latents in clean.items()}
    if value == "zero":
        return {name: torch.zeros_like(latents) for name, latents in clean.items()}
    given = value if isinstance(value, Mapping) else mean() if value == "mean" else corrupted()
    return {name: given[name].to(latents).expand_as(latents) for name, latents in clean.items()}


def mean_of(parts: Iterable[Named]) -> dict[str, Tensor]:
    """The mean over all points, ``[p, d_sae]`` each, in float64; ``[d_sae]`` by name."""
    sums: dict[str, Tensor] = {}
    count = 0
    for part in parts:
        for name, latents in part.items():
            total = latents.double().sum(0)
            sums[name] = sums[name] + total if name in sums else total
        count += len(next(iter(part.values()), ()))
    return {name: total / count for name, total in sums.items()}
