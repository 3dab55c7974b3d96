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
from interpretune.evidence.intervals import ratios_over_rows
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
    every = [chosen, *(drawn if len(drawn[0]) == len(chosen) else [])]  # fewer others would be no control
    to = ablated_values(question, sets)
    patched = all(row.corrupted is not None for row in rows)

    clean, swapped = _Rated(), _Rated()
    for batch in asked.batches(rows):
        changed = ChangedBatch(asked, batch, sets)
        fixed = [Setting.of(members_of(some), to, len(batch.points)) for some in every]
        if not patched:
            clean.add(changed, fixed)
            continue
        other = ChangedBatch(asked, corrupted(asked, batch), sets)
        patches = [changed.set_as_in(other, members_of(some)) for some in every]
        clean.add(changed, [*fixed, *patches])
        swapped.add(other, [other.set_as_in(changed, members_of(some)) for some in every])
    correct = np.array([row.correct for row in rows])
    right = clean.before == correct
    ways = np.split(clean.after == correct, 2 if patched else 1)
    done: list[tuple[ChangeName, str, NDArray[np.bool_], NDArray[np.bool_]]] = [
        ("ablated", "{} " + told_ablated(question), ways[0], right)
    ]
    if patched:
        turnable = right & (swapped.before != correct)
        done.append(("corrupted", "{} set to what they are after the corrupted prompts", ways[1], right))
        told = "after the corrupted prompts, {} set to what they are after the clean ones"
        done.append(("added", told, swapped.after == correct, turnable))
    others_told = f"{len(chosen)} other active unit{'s' * (len(chosen) != 1)} of the same sets"
    changes = []
    for name, told, now, of in done:
        changes.append(_change(name, False, told.format(counted(len(chosen))), now[:1], of))
        if len(every) > 1:
            changes.append(_change(name, True, f"{told.format(others_told)}, mean of {DRAWS} draws", now[1:], of))
    return HeldOut(
        rows=len(rows),
        share_correct=float(right.mean()),
        units=tuple(item.name for item in chosen),
        judged="corrupted" if patched and question.value == "corrupted" else "ablated",
        changes=tuple(changes),
    )


def corrupted(question: Question, batch: RowsAsked) -> RowsAsked:
    """The batch with the corrupted prompts of its rows in the place of their prompts."""
    rows = [evolve(row, tokens=row.corrupted, corrupted=row.tokens) for row in batch.rows if row.corrupted is not None]
    [found] = evolve(question, batch_size=len(rows)).batches(rows)
    return found


def _change(
    name: ChangeName, control: bool, told: str, now_right: NDArray[np.bool_], among: NDArray[np.bool_]
) -> Change:
    """A change after which rows are right, ``[draws, n]``, counted among some rows."""
    turned = (now_right if name == "added" else ~now_right).mean(0) * among
    flipped = ratios_over_rows(turned[:, None], among.astype(float))
    ends = float(flipped.low[0]), float(flipped.high[0])
    return Change(name, control, told, float(now_right.mean()), float(flipped.values[0]), int(among.sum()), *ends)


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
