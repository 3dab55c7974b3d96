"""Units that evidence is about: the top of a question, and others for control."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from interpretune.evidence.changed_rows import Members
from interpretune.questions.question import Question
from interpretune.questions.result import Effects, unit_name
from interpretune.questions.set_values import set_values
from interpretune.questions.units import UnitSet


@frozen(eq=False)
class Chosen:
    """A unit.

    Attributes:
        units: Its unit set.
        unit: Its id.
    """

    units: UnitSet
    unit: int

    @property
    def name(self) -> str:
        """In words."""
        return unit_name(self.units.kind, self.units.name, self.unit)

    @property
    def members(self) -> Tensor:
        """Its latents, ``[k]``."""
        return self.units.members[int((self.units.ids == self.unit).nonzero())]


def top_units(question: Question, effects: Effects, n: int) -> list[Chosen]:
    """The units with the largest effects, by the mean size of their effects."""
    sets = {item.name: item for item in question.sets}
    top = effects.top(n)
    return [Chosen(sets[units], int(unit)) for units, unit in zip(top.units, top.unit, strict=True)]


def sets_of(chosen: Iterable[Chosen]) -> list[UnitSet]:
    """The unit sets of units, each once."""
    return list({item.units.name: item.units for item in chosen}.values())


def members_of(chosen: Iterable[Chosen]) -> Members:
    """All latents of units, by the name of their unit set."""
    found: dict[str, list[Tensor]] = {}
    for item in chosen:
        found.setdefault(item.units.name, []).append(item.members)
    return {name: torch.cat(parts) for name, parts in found.items()}


def active_units(effects: Effects) -> Mapping[str, NDArray[np.int64]]:
    """Ids of the units that are active somewhere in the question, by the name of their unit set."""
    found: dict[str, NDArray[np.int64]] = {}
    for batch in effects.store.latents(["activations"]):
        entries = batch.to_pandas()
        for name, ids in entries[entries.activations != 0].groupby("hook", observed=True).latent:
            found[str(name)] = np.union1d(found.get(str(name), []), ids).astype(np.int64)
    return found


def others(
    active: Mapping[str, NDArray[np.int64]], chosen: Sequence[Chosen], draw: np.random.Generator
) -> list[Chosen]:
    """As many other units of the same unit sets, drawn among the active ones.

    Fewer where a set has fewer.
    """
    found = []
    for item in sets_of(chosen):
        taken = [one.unit for one in chosen if one.units.name == item.name]
        free = np.setdiff1d(active.get(item.name, []), taken)
        drawn = draw.permutation(free)[: len(taken)]
        found += [Chosen(item, int(unit)) for unit in sorted(drawn)]
    return found


def ablated_values(question: Question, sets: Sequence[UnitSet]) -> dict[str, Tensor]:
    """What units are ablated to, ``[d_sae]`` by the name of their unit set: what the question sets them to.

    It is zero where the question sets them to the values of corrupted prompts, which differ by row.
    """
    value = "zero" if question.value == "corrupted" else question.value
    device = question.backend.model_device
    clean = {item.name: torch.zeros(item.dictionary.d_sae, device=device, dtype=torch.float64) for item in sets}
    means = {name: values for part in (question.means if value == "mean" else []) for name, values in part.items()}
    return set_values(value, clean, dict, lambda: means)


def told_ablated(question: Question) -> str:
    """In words, what units are ablated to."""
    if question.value == "mean":
        return "set to their means"
    if isinstance(question.value, (int, float)):
        return f"set to {question.value:g}"
    return "set to 0" if question.value in ("zero", "corrupted") else "set to the values of the question"


def counted(number: int) -> str:
    """So many units, in words."""
    return "the unit" if number == 1 else f"the {number} units"
