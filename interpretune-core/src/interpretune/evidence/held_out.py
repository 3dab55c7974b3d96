"""Proof on held-out rows: what happens to answers when the top units of a question are changed together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from attrs import define, evolve, field
from numpy.typing import NDArray
from torch import Tensor

from interpretune.errors import DataError
from interpretune.evidence.changed_rows import ChangedBatch, Setting
from interpretune.evidence.chosen import (
    Chosen,
    ablated_values,
    active_units,
    counted,
    members_of,
    others,
    sets_of,
    told_ablated,
)
from interpretune.evidence.facts import Change, ChangeName, HeldOut
from interpretune.evidence.intervals import share_and_interval
from interpretune.operations.objectives import LogitDiff
from interpretune.questions.encoding import EncodedRow
from interpretune.questions.question import Question, RowsAsked
from interpretune.questions.result import Effects

DRAWS = 5
"""How often others are drawn for control."""


@define(eq=False)
class _Rated:
    """Which answer is rated highest, of all rows: nothing changed, and with each setting."""

    _before: list[Tensor] = field(factory=list)
    _after: list[Tensor] = field(factory=list)

    def add(self, batch: ChangedBatch, settings: Sequence[Setting]) -> None:
        self._before.append(batch.run.rated)
        self._after.append(batch.changed(settings)[1])

    @property
    def before(self) -> NDArray[np.int64]:
        """``[n]``."""
        found: NDArray[np.int64] = torch.cat(self._before).cpu().numpy()
        return found

    @property
    def after(self) -> NDArray[np.int64]:
        """``[settings, n]``."""
        found: NDArray[np.int64] = torch.cat(self._after, dim=-1).cpu().numpy()
        return found


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
    _check(question, rows)
    means_over = question.rows if question.mean_over is None else question.mean_over
    asked = evolve(question, rows=rows, mean_over=means_over, objective=LogitDiff(against="max"))
    sets, draw = sets_of(chosen), np.random.default_rng(seed)
    active = active_units(effects)
    drawn = [others(active, chosen, draw) for _ in range(DRAWS)]
    drawn = drawn if drawn[0] else []
    to, members = ablated_values(question, sets), members_of(chosen)
    patched = all(row.corrupted is not None for row in rows)

    clean, swapped = _Rated(), _Rated()
    for batch in asked.batches(rows):
        changed = ChangedBatch(asked, batch, sets)
        fixed = [Setting.of(members_of(some), to, len(batch.points)) for some in (chosen, *drawn)]
        if not patched:
            clean.add(changed, fixed)
            continue
        other = ChangedBatch(asked, corrupted(asked, batch), sets)
        patches = [changed.set_as_in(other, members_of(some)) for some in (chosen, *drawn)]
        clean.add(changed, [*fixed, *patches])
        swapped.add(other, [other.set_as_in(changed, members)])
    correct = np.array([row.correct for row in rows])
    right, units = clean.before == correct, counted(len(chosen))
    ways = np.split(clean.after == correct, 2 if patched else 1)
    set_to = [told_ablated(question), "set to what they are after the corrupted prompts"]
    changes = [_change("ablated", f"{units} {set_to[0]}", ways[0][:1], right)]
    if patched:
        changes.append(_change("corrupted", f"{units} {set_to[1]}", ways[1][:1], right))
        told = f"after the corrupted prompts, {units} set to what they are after the clean ones"
        changes.append(_change("added", told, swapped.after == correct, right & (swapped.before != correct)))
    if drawn:
        number = f"{len(drawn[0])} other active unit{'s' * (len(drawn[0]) != 1)} of the same sets"
        for told, now_right in zip(set_to, ways, strict=False):
            changes.append(_change("random", f"{number} {told}, mean of {DRAWS} draws", now_right[1:], right))
    return HeldOut(len(rows), float(right.mean()), tuple(item.name for item in chosen), tuple(changes))


def corrupted(question: Question, batch: RowsAsked) -> RowsAsked:
    """The batch with the corrupted prompts of its rows in the place of their prompts."""
    rows = [evolve(row, tokens=row.corrupted, corrupted=row.tokens) for row in batch.rows if row.corrupted is not None]
    [found] = evolve(question, batch_size=len(rows)).batches(rows)
    return found


def _change(name: ChangeName, told: str, now_right: NDArray[np.bool_], among: NDArray[np.bool_]) -> Change:
    """A change after which rows are right, ``[draws, n]``, counted among some rows."""
    turned = (now_right if name == "added" else ~now_right).mean(0) * among
    flipped, low, high = share_and_interval(turned, among.astype(float))
    return Change(name, told, float(now_right.mean()), flipped, int(among.sum()), low, high)


def _check(question: Question, rows: Sequence[EncodedRow]) -> None:
    """Refuse rows that prove nothing: those of the question, and those without two answers."""
    few = next((i for i, row in enumerate(rows) if len(row.answers) < 2), None)
    if few is not None:
        raise DataError(
            f"Held-out row {few} has {len(rows[few].answers)} answers; whether an answer changes shows between two at "
            "least."
        )
    check_unseen(question, rows)


def check_unseen(question: Question, rows: Sequence[EncodedRow]) -> None:
    """Refuse held-out rows that are rows of the question.

    Raises:
        DataError: Some have a prompt of the question.
    """
    known = {tuple(row.tokens.tolist()) for row in question.rows}
    if known_too := [i for i, row in enumerate(rows) if tuple(row.tokens.tolist()) in known]:
        raise DataError(
            f"{len(known_too)} of {len(rows)} held-out rows have a prompt of the question, first row {known_too[0]}. "
            "They are to show that its answer holds elsewhere: give rows that it has not seen."
        )
