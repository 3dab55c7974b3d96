"""Effects of the units of unit sets in a batch, from the latents of their dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.inputs import Points
from interpretune.questions.measured_batch import MeasuredBatch
from interpretune.questions.units import UnitSet
from interpretune.replay.observed import Observed
from interpretune.replay.rows import Changes, LatentRows
from interpretune.store.values import LatentValues


@frozen(eq=False)
class UnitChanges:
    """What changes in a group of unit sets, by name, all ``[p, ...]``: latents, and which units are moved.

    ``rough`` has gradient effects of the units; None where none are asked for.
    """

    clean: Mapping[str, Tensor]
    chosen: Mapping[str, Tensor]
    moved: Mapping[str, Tensor]
    rough: Mapping[str, Tensor] | None


@frozen(eq=False)
class UnitEffects:
    """What is known of a unit set in a batch, all ``[p, n_units]``; effects that were screened out are NaN."""

    effects: Tensor
    sizes: Tensor
    moved: Tensor
    screened: Tensor
    largest: Tensor


Exact = Callable[
    [MeasuredBatch, Points, Sequence[UnitSet], Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]
]
"""Finds effects, as ``exact_effects`` does."""


def exact_effects(
    run: MeasuredBatch,
    points: Points,
    group: Sequence[UnitSet],
    wanted: Mapping[str, Tensor],
    chosen: Mapping[str, Tensor],
    observed: Observed | None = None,
) -> dict[str, Tensor]:
    """Effects of units at points, ``[p, n_units]`` by name; 0 where none is wanted.

    The rows that are changed are those of ``changed_rows``, of one unit set after the other; ``observed`` is what they
    note.
    """
    rows = [changed_rows(item, wanted[item.name], chosen[item.name]) for item in group]
    changed = run.changed(LatentRows.joined(rows), observed).split([len(part) for part in rows])
    found = {}
    for item, part, mine in zip(group, rows, changed, strict=True):
        effects = run.clean.new_zeros(wanted[item.name].shape)
        effects[wanted[item.name]] = run.clean[points.examples[part.points]] - mine
        found[item.name] = effects
    return found


def changed_rows(item: UnitSet, wanted: Tensor, chosen: Tensor) -> LatentRows:
    """A row for each point and unit that is wanted, in which the latents of the unit are set."""
    points, units = wanted.nonzero().unbind(-1)
    members = item.members.to(chosen.device)[units]
    rows = torch.arange(len(points), device=chosen.device).repeat_interleave(members.shape[1])
    values = chosen[points.unsqueeze(-1), members].flatten()
    return LatentRows(points, {item.activation_name: Changes(rows, members.flatten(), values)})


def any_of(item: UnitSet, latents: Tensor) -> Tensor:
    """Whether something holds for a latent of each unit, ``[p, d_sae]`` to ``[p, n_units]``."""
    return latents[:, item.members.to(latents.device)].any(-1)


def sum_of(item: UnitSet, latents: Tensor) -> Tensor:
    """The sum over the latents of each unit, ``[p, d_sae]`` to ``[p, n_units]``."""
    return latents[:, item.members.to(latents.device)].sum(-1)


def sizes(item: UnitSet, latents: Tensor) -> Tensor:
    """The activation of each unit: that of its latent, or the norm of several, ``[p, n_units]``."""
    members = latents[:, item.members.to(latents.device)].double()
    return members.squeeze(-1) if members.shape[-1] == 1 else members.norm(dim=-1)


def stored(item: UnitSet, part: UnitEffects, values: Tensor) -> LatentValues:
    """Values of the units that are moved at some point of the batch."""
    alive = part.moved.any(0)
    return LatentValues(item.ids[alive.cpu()], values[:, alive].masked_fill(~part.moved[:, alive], 0), item.size)
