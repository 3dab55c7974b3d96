"""Proof on held-out rows: what happens to answers when the top units of a question are changed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from attrs import evolve, frozen
from numpy.typing import NDArray
from torch import Tensor

from interpretune.errors import DataError
from interpretune.evidence.changed_rows import ChangedBatch, Setting
from interpretune.evidence.chosen import (
    Chosen,
    ablated_values,
    counted,
    members_of,
    others,
    sets_of,
    told_ablated,
)
from interpretune.evidence.facts import Change, ChangeName, HeldOut
from interpretune.evidence.intervals import share_and_interval
from interpretune.latents.identity import IdentityDictionary
from interpretune.operations.objectives import LogitDiff
from interpretune.questions.encoding import EncodedRow
from interpretune.questions.question import Question, RowsAsked
from interpretune.questions.result import Effects
from interpretune.questions.units import UnitSet

DRAWS = 5
"""How often others are drawn for control."""


@frozen(eq=False)
class _Rated:
    """Which answer is rated highest, of all rows: nothing changed ``[n]``, and with each setting ``[k, n]``."""

    before: NDArray[np.int64]
    after: NDArray[np.int64]
    correct: NDArray[np.int64]

    @property
    def was_right(self) -> NDArray[np.bool_]:
        return self.before == self.correct

    def change(self, name: ChangeName, told: str, after: NDArray[np.int64], among: NDArray[np.bool_]) -> Change:
        """A change, of which ``after`` is ``[draws, n]``, counted among some rows."""
        right = after == self.correct
        turned = (right if name == "added" else ~right).mean(0) * among
        flipped = share_and_interval(turned, among.astype(float))
        return Change(name, told, float(right.mean()), *flipped)


def held_out_proof(
    question: Question, effects: Effects, rows: Sequence[EncodedRow], chosen: Sequence[Chosen], seed: int
) -> HeldOut:
    """Change units of a question together, in other rows.

    Args:
        question: The question.
        effects: Its effects; others for control are drawn among the units that have any.
        rows: Rows with two answers at least, none of them of the question.
        chosen: The units.
        seed: Of those draws.

    Raises:
        DataError: Rows are of the question, or have no two answers.
    """
    _check_apart(question, rows)
    means_over = question.rows if question.mean_over is None else question.mean_over
    asked = evolve(question, rows=rows, mean_over=means_over, objective=LogitDiff(against="max"))
    sets, draw = sets_of(chosen), np.random.default_rng(seed)
    drawn = [others(effects, chosen, draw) for _ in range(DRAWS)]
    drawn = drawn if drawn[0] else []
    to, members = ablated_values(question, sets), members_of(chosen)
    patched = all(row.corrupted is not None for row in rows)

    def fixed(n: int) -> list[Setting]:
        return [Setting.of(members_of(some), to, n) for some in (chosen, *drawn)]

    def patch(batch: RowsAsked) -> Setting:
        return Setting.of(members, corrupted_values(asked, batch, sets), len(batch.points))

    found = _rated(asked, rows, sets, lambda batch: [*fixed(len(batch.points)), *([patch(batch)] if patched else [])])
    units, set_to, n_drawn = counted(len(chosen)), told_ablated(question), len(drawn)
    changes = [found.change("ablated", f"{units} {set_to}", found.after[:1], found.was_right)]
    if patched:
        told = f"{units} set to what they are after the corrupted prompts"
        changes.append(found.change("corrupted", told, found.after[-1:], found.was_right))
        swapped = [evolve(row, tokens=row.corrupted, corrupted=row.tokens) for row in rows if row.corrupted is not None]
        other = _rated(asked, swapped, sets, lambda batch: [patch(batch)])
        told = f"after the corrupted prompts, {units} set to what they are after the clean ones"
        changes.append(other.change("added", told, other.after, found.was_right & ~other.was_right))
    if drawn:
        number = f"{len(drawn[0])} other active unit{'s' * (len(drawn[0]) != 1)} of the same sets"
        told = f"{number} {set_to}, mean of {n_drawn} draws"
        changes.append(found.change("random", told, found.after[1 : 1 + n_drawn], found.was_right))
    return HeldOut(len(rows), float(found.was_right.mean()), tuple(item.name for item in chosen), tuple(changes))


def corrupted_values(question: Question, batch: RowsAsked, sets: Sequence[UnitSet]) -> dict[str, Tensor]:
    """Latents of unit sets at the points of a batch when the corrupted prompts run, ``[p, d_sae]`` by name."""
    found: dict[str, Tensor] = {}
    for group in question.groups:
        mine = [item for item in group if item.name in {one.name for one in sets}]
        if mine:
            plain = isinstance(mine[0].dictionary, IdentityDictionary)
            found |= question.corrupted(batch, mine if plain else group)
    return found


def _rated(
    question: Question,
    rows: Sequence[EncodedRow],
    sets: Sequence[UnitSet],
    settings: Callable[[RowsAsked], Sequence[Setting]],
) -> _Rated:
    before, after = [], []
    for batch in question.batches(rows):
        changed = ChangedBatch(question, batch, sets)
        before.append(changed.run.rated)
        after.append(changed.changed(settings(batch))[1])
    correct = np.array([row.correct for row in rows])
    return _Rated(torch.cat(before).cpu().numpy(), torch.cat(after, dim=-1).cpu().numpy(), correct)


def _check_apart(question: Question, rows: Sequence[EncodedRow]) -> None:
    """Refuse rows of the question, which prove nothing."""
    known = {tuple(row.tokens.tolist()) for row in question.rows}
    if known_too := [i for i, row in enumerate(rows) if tuple(row.tokens.tolist()) in known]:
        raise DataError(
            f"{len(known_too)} of {len(rows)} held-out rows have a prompt of the question, first row {known_too[0]}. "
            "They are to show that its answer holds elsewhere: give rows that it has not seen."
        )
