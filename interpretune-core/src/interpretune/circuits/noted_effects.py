"""Effects that changed rows have on the units that they note, as far as they are above a tolerance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from interpretune.errors import NotFiniteError
from interpretune.questions.measured_batch import MeasuredBatch
from interpretune.questions.units import UnitSet
from interpretune.replay.observed import Keep

MOST_NUMBERS = 2**22
"""Of differences that are made at a time."""


@frozen(eq=False)
class ChangedUnits:
    """What changed rows change: unit set by its index, question's point, and unit's id, ``[n]`` each."""

    sets: Tensor
    points: Tensor
    units: Tensor

    @classmethod
    def of(cls, group: Sequence[UnitSet], wanted: Mapping[str, Tensor]) -> ChangedUnits:
        """Those of the rows of ``exact_effects``."""
        parts = []
        for number, item in enumerate(group):
            points, units = wanted[item.name].nonzero().unbind(-1)
            parts.append((torch.full_like(points, number), points, item.ids.to(points.device)[units]))
        return cls(*map(torch.cat, zip(*parts, strict=True)))


@frozen(eq=False)
class Found:
    """Effects: the changed row, point of the prefill, target set, place of the unit in it, and effect, ``[m]`` each."""

    rows: Tensor
    points: Tensor
    sets: Tensor
    places: Tensor
    effects: Tensor


class NotedEffects:
    """Receives what changed rows of a batch note, and keeps the effects that are above a tolerance.

    Attributes:
        dropped: How many effects that are not 0 are left out, ``[p, n_on]`` by the point that is changed.
        largest_dropped: Size of the largest of them.
    """

    def __init__(
        self,
        run: MeasuredBatch,
        n_points: int,
        sources: ChangedUnits,
        on: Sequence[UnitSet],
        follows: Tensor,
        tolerance: float,
    ) -> None:
        """Begin with nothing.

        Args:
            run: The batch.
            n_points: Number of points at which units are changed.
            sources: What the rows change.
            on: Target sets.
            follows: Whether a target set stands above a source set, ``[n_sources, n_on]``, bool.
            tolerance: Largest effect that is left out.
        """
        self._run, self._sources, self._on, self._follows = run, sources, on, follows.to(sources.sets.device)
        self._tolerance, self._kept = tolerance, list[Found]()
        self.dropped = torch.zeros(n_points, len(on), dtype=torch.long, device=sources.sets.device)
        self.largest_dropped = torch.zeros_like(self.dropped, dtype=torch.float64)

    def see(self, name: str, rows: Tensor, points: Tensor, latents: Tensor) -> Keep:
        """Receive latents ``[m, d_sae]`` at points of the prefill, as ``Observed`` hands them out."""
        parts = [
            self._compared(number, item, name, rows[chunk], points[chunk], latents[chunk])
            for number, item in enumerate(self._on)
            if item.activation_name == name
            for chunk in self._chunks(number, rows, latents.shape[1])
        ]

        def keep() -> None:
            for found, counted, largest in parts:
                self._kept.append(found)
                self.dropped += counted
                self.largest_dropped = torch.maximum(self.largest_dropped, largest)

        return keep

    def _chunks(self, number: int, rows: Tensor, width: int) -> Sequence[Tensor]:
        """The rows below a target set, few enough at a time."""
        return self._follows[self._sources.sets[rows], number].nonzero().flatten().split(max(1, MOST_NUMBERS // width))

    def _compared(
        self, number: int, item: UnitSet, name: str, rows: Tensor, points: Tensor, latents: Tensor
    ) -> tuple[Found, Tensor, Tensor]:
        members = item.members.to(latents.device)
        change = self._run.prefill.latents[name][points] - latents
        if members.shape[1] > 1:
            effects = change[:, members].norm(dim=-1)
        else:
            effects = change if len(members) == change.shape[1] else change[:, members.flatten()]
        sizes = effects.abs()
        kept = sizes > self._tolerance
        below = sizes.masked_fill(kept, 0)
        largest = below.amax(-1) if len(members) else below.new_zeros(len(rows))
        which, places = kept.nonzero().unbind(-1)
        values = effects[which, places]
        if bool(largest.isnan().any()) or not bool(values.isfinite().all()):
            bad = torch.cat([rows[largest.isnan()], rows[which[~values.isfinite()]]])
            raise NotFiniteError(
                f"Activations of {item.name} with units changed",
                sorted({*self._sources.points[bad].tolist()}),
                "Those of the clean run are. Look at the values that units are set to.",
            )
        counted, biggest = torch.zeros_like(self.dropped), torch.zeros_like(self.largest_dropped)
        at = self._sources.points[rows]
        counted[:, number].index_add_(0, at, (below > 0).sum(-1))
        biggest[:, number].scatter_reduce_(0, at, largest.double(), "amax")
        found = Found(rows[which], points[which], torch.full_like(which, number), places, values.double())
        return found, counted, biggest

    def found(self) -> Found:
        """All effects that were kept, in the order of the rows, target sets, and tokens."""
        rows, points, sets, places, effects = (
            torch.cat([getattr(part, name) for part in self._kept])
            if self._kept
            else self._sources.sets.new_zeros(0, dtype=torch.float64 if name == "effects" else torch.long)
            for name in ("rows", "points", "sets", "places", "effects")
        )
        order = _in_order(places, points, sets, rows)
        return Found(rows[order], points[order], sets[order], places[order], effects[order])

    def stored(self, found: Found, gradients: Tensor | None) -> dict[str, Any]:
        """What a store keeps of each point, with gradient effects ``[m]``, in ``EFFECT_FIELDS``."""
        at = self._sources.points[found.rows]
        by_point = at.argsort(stable=True)
        counts = torch.bincount(at, minlength=len(self.dropped)).tolist()
        ids = torch.zeros_like(found.places)
        for number, item in enumerate(self._on):
            mine = found.sets == number
            ids[mine] = item.ids.to(ids.device)[found.places[mine]]
        values = {
            "from_units": self._sources.sets[found.rows],
            "from_unit": self._sources.units[found.rows],
            "on_units": found.sets,
            "on_unit": ids,
            "on_position": self._run.prompt_tokens(found.points),
            "on_effect": found.effects,
            "on_gradient": torch.full_like(found.effects, torch.nan) if gradients is None else gradients,
        }
        lists = {name: list(value[by_point].split(counts)) for name, value in values.items()}
        return {**lists, "dropped": self.dropped, "largest_dropped": self.largest_dropped}


def _in_order(*keys: Tensor) -> Tensor:
    """The order by several keys, the last of them first."""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in keys:
        order = order[key[order].argsort(stable=True)]
    return order
