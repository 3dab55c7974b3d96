"""Units of a question in a fixed order, of which sets are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from attrs import frozen
from torch import Tensor

from interpretune.errors import AnalysisError
from interpretune.evidence.changed_rows import Members
from interpretune.latents.identity import IdentityDictionary
from interpretune.questions.model_and_rows import check_count
from interpretune.questions.prompt_row import brief
from interpretune.questions.question import Question
from interpretune.questions.result import Effects, unit_name
from interpretune.questions.units import UnitSet
from interpretune.replay.rows import Changes, LatentRows

OF_COORDINATES = 16
"""Numbers that setting one coordinate takes."""
Named = int | Sequence[str] | Sequence[tuple[str, int]]
"""Units: so many at the top, or each by its name, or by its unit set and its id."""


class NothingToFindError(AnalysisError):
    """Units do next to nothing, or there are too few: a circuit is not to be had."""


@frozen(eq=False)
class UnitPool:
    """Units of a question, each once, in an order.

    Attributes:
        sets: Their unit sets.
        owners: Unit set of each, an index of ``sets``, ``[n]``.
        places: Which unit of that set it is, an index of ``UnitSet.ids``, ``[n]``.
    """

    sets: Sequence[UnitSet]
    owners: Tensor
    places: Tensor

    @classmethod
    def of_all(cls, question: Question) -> UnitPool:
        """All units that the question changes."""
        places = [torch.arange(len(item.ids)) for item in question.sets]
        owners = [torch.full_like(place, i) for i, place in enumerate(places)]
        return cls(question.sets, torch.cat(owners), torch.cat(places))

    @classmethod
    def chosen(cls, question: Question, effects: Effects, units: Named) -> UnitPool:
        """Some of them.

        Args:
            question: The question.
            effects: Its effects.
            units: So many with the largest effects, as ``effects.top`` has them, fewer where there are fewer; or units.

        Raises:
            AnalysisError: There are no such units, or one is named twice.
            ConfigurationError: The number is out of range.
        """
        whole = cls.of_all(question)
        if isinstance(units, Iterable):
            named: Any = [units] if isinstance(units, str) else [*units]
        else:
            check_count("units", units)
            top = effects.top(units)
            named = list(zip(top.units, top.unit, strict=True))
        if not named:
            raise NothingToFindError("There are no units to make sets of: none has an effect here, or none is named.")
        found = whole.found(named)
        if len(found.unique()) < len(found):
            raise AnalysisError(f"A unit is named twice in {brief(units)}; name each once.")
        return whole.select(found)

    def __len__(self) -> int:
        return len(self.owners)

    @cached_property
    def table(self) -> pd.DataFrame:
        """``units``, the name of the unit set, and ``unit``, the id, of each."""
        ids = torch.cat([item.ids for item in self.sets])
        starts = torch.tensor([0, *(len(item.ids) for item in self.sets)]).cumsum(0)
        names = [self.sets[owner].name for owner in self.owners.tolist()]
        return pd.DataFrame({"units": names, "unit": ids[starts[self.owners] + self.places].tolist()})

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Units in words, as ``Effects.top`` has them."""
        kinds = [self.sets[owner].kind for owner in self.owners.tolist()]
        told = zip(kinds, self.table.units, self.table.unit, strict=True)
        return tuple(unit_name(kind, units, int(unit)) for kind, units, unit in told)

    def found(self, units: Sequence[str] | Sequence[tuple[str, int]]) -> Tensor:
        """Where units are in the pool, ``[m]``.

        Raises:
            AnalysisError: One is not there.
        """
        keys = [tuple(item) if isinstance(item, Iterable) and not isinstance(item, str) else item for item in units]
        pairs = list(zip(self.table.units.tolist(), self.table.unit.tolist(), strict=True))
        there: dict[object, int] = {pair: i for i, pair in enumerate(pairs)}
        if not there.keys() >= {*keys}:  # names of many units take long
            there |= {name: i for i, name in enumerate(self.names)}
        if lacking := [key for key in keys if key not in there]:
            first = pairs[0]
            raise AnalysisError(
                f"There is no unit {brief(lacking[0])} among the {len(self)} units here. Name units as Effects.top "
                f"does, such as {self.names[0]!r}, or by unit set and id: {first!r}."
            )
        return torch.tensor([there[key] for key in keys], dtype=torch.long)

    def select(self, which: Tensor) -> UnitPool:
        """Some units, ``[m]``, in the given order, with the unit sets that they are of."""
        kept, owners = self.owners[which].unique(return_inverse=True)
        return UnitPool([self.sets[i] for i in kept.tolist()], owners, self.places[which])

    def members(self, changed: Tensor) -> Members:
        """Latents of a set of units, ``[n]``, bool, by the name of their unit set."""
        found = {}
        for i, item in enumerate(self.sets):
            if len(places := self.places[changed & (self.owners == i)]):
                found[item.name] = item.members[places].flatten()
        return found

    def rows(self, changed: Tensor, values: Mapping[str, Tensor]) -> LatentRows:
        """A row for each set of units and each point, in which the units of the set are changed.

        Args:
            changed: Which units, ``[k, n]``, bool.
            values: What latents are set to at the points, ``[p, d_sae]`` by the name of their unit set.
        """
        first = next(iter(values.values()))
        device, n_points = first.device, len(first)
        points, changes = torch.arange(n_points, device=device), {}
        for i, item in enumerate(self.sets):
            mine = (self.owners == i).nonzero().flatten()
            members = item.members[self.places[mine]].to(device)
            flags = changed[:, mine].to(device).unsqueeze(1).expand(-1, n_points, -1)
            which, at, units = flags.nonzero().unbind(-1)
            latents = members[units]
            rows = (which * n_points + at).unsqueeze(-1).expand_as(latents)
            set_to = values[item.name][at.unsqueeze(-1), latents]
            changes[item.activation_name] = Changes(rows.flatten(), latents.flatten(), set_to.flatten())
        return LatentRows(points.repeat(len(changed)), changes)

    def numbers(self, changed: Tensor) -> int:
        """Numbers that changing the largest of several sets takes at a point: ids and values, or decoder rows.

        Args:
            changed: Which units, ``[k, n]``, bool.
        """
        plain = [isinstance(item.dictionary, IdentityDictionary) for item in self.sets]
        widths = [
            OF_COORDINATES if is_plain else item.dictionary.d_in
            for item, is_plain in zip(self.sets, plain, strict=True)
        ]
        sizes = torch.tensor([item.members.shape[1] * width for item, width in zip(self.sets, widths, strict=True)])
        return int((changed * sizes[self.owners]).sum(-1).max()) if len(changed) else 0
