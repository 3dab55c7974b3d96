"""What units are set to: zero, a mean, what they are in the corrupted run, or given numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from interpretune.errors import AnalysisError
from interpretune.questions.units import UnitSet

NamedValue = Literal["zero", "mean", "corrupted"]
Value = NamedValue | float | Mapping[str, Tensor]
"""A name, a number for all latents, or a number for each latent ``[d_sae]`` of each unit set, by its name."""

CHOICES = (
    f"units are set to one of {', '.join(get_args(NamedValue))}, to a number, or to tensors [d_sae] by the name of the "
    "unit set"
)

Named = Mapping[str, Tensor]
"""Something of each unit set, by its name."""


def check_value(value: Value, sets: Sequence[UnitSet]) -> None:
    """Refuse what units cannot be set to.

    Raises:
        AnalysisError: There is no such value, or given numbers do not fit the unit sets.
    """
    if isinstance(value, Mapping):
        widths = {item.name: (item.dictionary.d_sae,) for item in sets}
        shapes = {name: tuple(getattr(given, "shape", ())) for name, given in value.items()}
        if shapes != widths:
            raise AnalysisError(f"Values are given of the shapes {shapes}; the unit sets have {widths}.")
        return
    named = isinstance(value, str) and value in get_args(NamedValue)
    if not named and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise AnalysisError(f"Units cannot be set to {value!r}: {CHOICES}.")


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
