"""The objective of rows in which any units of a pool are changed together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from attrs import evolve, frozen
from numpy.typing import NDArray
from torch import Tensor

from interpretune.circuits.unit_pool import UnitPool
from interpretune.errors import DataError
from interpretune.evidence.changed_rows import ChangedBatch, Setting
from interpretune.evidence.chosen import ablated_values
from interpretune.evidence.held_out import corrupted
from interpretune.questions.encoding import EncodedRow
from interpretune.questions.question import Question

MOST_NUMBERS = 2**26
"""Most numbers of changes that are in memory at a time, over all rows that run together."""
KEPT = 16
"""Batches whose clean runs stay in memory; those beyond them run again each time."""


@frozen(eq=False)
class _Run:
    """A batch with nothing changed, and what latents are set to at its points, ``[p, d_sae]`` by unit set."""

    batch: ChangedBatch
    values: Mapping[str, Tensor]


class MeasuredSets:
    """Rows, and their objective when units are set to what the question sets them to.

    A unit is changed at all tokens of a row at which the question changes units. Where one of the pool is a latent, all
    dictionaries of the question are spliced in, also where nothing is changed.

    Attributes:
        clean: The objective with nothing changed, ``[rows]``, float64.
        evaluations: Sets of units whose objective was computed over all rows.
    """

    def __init__(self, question: Question, pool: UnitPool, rows: Sequence[EncodedRow] | None = None) -> None:
        """Run the rows.

        Args:
            question: The question.
            pool: The units.
            rows: Other rows than its own; means are still those of the question.

        Raises:
            DataError: A row lacks what the question needs, such as a corrupted prompt.
        """
        if rows is not None:
            over = question.rows if question.mean_over is None else question.mean_over
            question = evolve(question, rows=rows, mean_over=over)
        lacking = [i for i, row in enumerate(question.rows) if row.corrupted is None]
        if question.value == "corrupted" and lacking:
            raise DataError(f"Units are to be set to corrupted values, and row {lacking[0]} has no corrupted prompt.")
        self._question, self._pool = question, pool
        self._batches = list(question.batches(question.rows))
        self._kept: dict[int, _Run] = {}
        self.clean = self._joined([run.batch.run.clean for run in self._runs()])
        self.evaluations = 0

    def objectives(self, changed: Tensor) -> NDArray[np.float64]:
        """The objective of all rows with sets of units changed, each different set computed once.

        Args:
            changed: Which units of the pool are in each set, ``[k, n]``, bool.

        Returns:
            ``[k, rows]``.
        """
        sets, back = changed.unique(dim=0, return_inverse=True)
        self.evaluations += int(sets.any(-1).sum())
        found = self._joined([self._measured(run, sets) for run in self._runs()])
        return found[back.numpy()]

    def _measured(self, run: _Run, changed: Tensor) -> Tensor:
        """``[k, rows of the batch]``."""
        n_points = len(next(iter(run.values.values())))
        if not run.batch.replays:
            found = run.batch.run.clean.repeat(len(changed), 1)
            some = changed.any(-1).nonzero().flatten()
            for i in some.tolist():
                setting = Setting.of(self._pool.members(changed[i]), run.values, n_points)
                found[i] = run.batch.changed([setting])[0][0]
            return found
        step = max(1, MOST_NUMBERS // max(1, n_points * self._pool.numbers(changed)))
        parts = [run.batch.run.changed(self._pool.rows(part, run.values)) for part in changed.split(step)]
        return torch.cat(parts).view(len(changed), -1)

    def _runs(self) -> Iterator[_Run]:
        for number, batch in enumerate(self._batches):
            if (run := self._kept.get(number)) is None:
                sets = self._pool.sets
                changed = ChangedBatch(self._question, batch, sets)
                if self._question.value == "corrupted":
                    other = ChangedBatch(self._question, corrupted(self._question, batch), sets)
                    values = {item.name: other.latents(item.name) for item in sets}
                else:
                    to, n = ablated_values(self._question, sets), len(batch.points)
                    values = {name: latents.expand(n, -1) for name, latents in to.items()}
                run = _Run(changed, values)
                if number < KEPT:
                    self._kept[number] = run
            yield run

    @staticmethod
    def _joined(parts: Sequence[Tensor]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = torch.cat([part.cpu().double() for part in parts], dim=-1).numpy()
        return found
