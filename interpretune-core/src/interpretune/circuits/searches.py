"""The smallest set of units that carries what a pool of them does, by greedy or beam search."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from attrs import field, frozen
from torch import Tensor

from interpretune.circuits.measured_sets import MeasuredSets
from interpretune.circuits.share_of_pool import Whole, check_share
from interpretune.circuits.stored_result import CircuitResult, Floats, rows_held_out, told_of, told_units
from interpretune.circuits.unit_pool import Named, NothingToFindError, UnitPool
from interpretune.errors import ConfigurationError
from interpretune.evidence.gathering import question_asked
from interpretune.questions.model_and_rows import check_count
from interpretune.questions.result import Effects

AT_ONCE = 2**24
"""Most flags of units that are in memory at a time."""
SHARE_TOLERANCE = 1e-9
"""By how much a share may be missed, such as that of the whole pool."""


@frozen(eq=False, repr=False)
class SmallestSet(CircuitResult):
    """The smallest set of units that a search found.

    Attributes:
        share: Share of what the whole pool does that the set was to reach.
        reached: Whether it does, on the rows of the question.
        units: Names of its units, in the order in which the search took them.
        path: Share that the first 1, 2, ... of them reach, ``[units]``.
        search: How it was found: ``greedy``, or ``beam of width 8``.
        proven: Whether no smaller set reaches the share: all of them were looked at. Never told of a greedy search.
        evaluations: Sets of units whose objective was computed over all rows of the question.
        budget: The most that were allowed.
        pool: Names of all units that might have been taken.
        pool_told: The same in words.
        found_on: Objectives on the rows of the question: nothing changed, the whole pool changed, and what the set is
            judged by, ``[3, rows]``.
        held_out: The same on held-out rows; no rows where none were given.
    """

    kind: ClassVar[str] = "smallest"

    share: float
    reached: bool
    units: tuple[str, ...]
    path: Floats
    search: str
    proven: bool
    evaluations: int
    budget: int
    pool: tuple[str, ...]
    pool_told: str
    found_on: Floats
    held_out: Floats

    def shares(self) -> pd.DataFrame:
        """The share that the set reaches, with its 95 % interval, on the rows that chose it and on held-out ones.

        Returns:
            ``rows``, ``question`` or ``held-out``; ``n``, how many; ``share``, ``low``, ``high``, NaN where the whole
            pool does next to nothing; and means of the objective: ``model``, nothing changed, ``nothing``, the whole
            pool changed, and ``changed``.
        """
        lines = []
        for name, (clean, nothing, changed) in (("question", self.found_on), ("held-out", self.held_out)):
            if len(clean):
                found = Whole(clean, nothing).shares(self.towards(changed, clean, nothing)[None])
                ends = {"share": found.values[0], "low": found.low[0], "high": found.high[0]}
                means = {"model": clean.mean(), "nothing": nothing.mean(), "changed": changed.mean()}
                lines.append({"rows": name, "n": len(clean), **ends, **means})
        return pd.DataFrame(lines)

    @staticmethod
    def towards(changed: Floats, clean: Floats, nothing: Floats) -> Floats:
        """Objectives that are ``clean`` where the set does all that the pool does, ``nothing`` where it does none."""
        raise NotImplementedError

    def to_pandas(self) -> pd.DataFrame:
        """A line for each unit of the set: ``unit``, and the ``share`` that it reaches with those before it."""
        return pd.DataFrame({"unit": self.units, "share": self.path})

    def plot(self) -> go.Figure:
        """The share over the number of units."""
        figure = go.Figure(go.Scatter(x=np.arange(1, len(self.units) + 1), y=self.path, text=self.units))
        figure.update_traces(mode="lines+markers", hovertemplate="%{x}: %{text}<br>share %{y:.4g}<extra></extra>")
        figure.add_hline(self.share, line_dash="dot")
        figure.update_layout(
            title=f"{self.objective}: {self.kind} set out of {len(self.pool)} units",
            xaxis_title="units",
            yaxis_title="share of what the pool does",
            template="plotly_white",
        )
        return figure

    def __repr__(self) -> str:
        n, told = len(self.units), self.shares()
        reached = [
            f"{'no share that could be told' if math.isnan(share) else format(share, '.0%')} on {name} rows"
            for name, share in zip(told["rows"], told.share, strict=True)
        ]
        least = "no smaller set" if self.proven else "a smaller one is not ruled out"
        goal = f"{self.share:.0%} {'reached' if self.reached else 'not reached'}"
        return (
            f"{self.kind.capitalize()} set for {self.objective}: {n} unit{'s' * (n != 1)} out of {len(self.pool)} "
            f"({self.pool_told}), set to {self.value}.\nOf what all of them do: {', '.join(reached)}. {goal}; {least} "
            f"({self.search}, {self.evaluations} of at most {self.budget} evaluations)"
        )


@frozen(eq=False, repr=False)
class SufficientSet(SmallestSet):
    """Units that are kept while all others of the pool are changed."""

    kind: ClassVar[str] = "sufficient"

    @staticmethod
    def towards(changed: Floats, clean: Floats, nothing: Floats) -> Floats:
        """See ``SmallestSet.towards``."""
        return changed


@frozen(eq=False, repr=False)
class NecessarySet(SmallestSet):
    """Units that are changed while all others are kept."""

    kind: ClassVar[str] = "necessary"

    @staticmethod
    def towards(changed: Floats, clean: Floats, nothing: Floats) -> Floats:
        """See ``SmallestSet.towards``."""
        return clean + nothing - changed


Wanted = Literal["sufficient", "necessary"]
KINDS: dict[str, type[SmallestSet]] = {"sufficient": SufficientSet, "necessary": NecessarySet}


def smallest_set(
    effects: Effects,
    wanted: Wanted = "sufficient",
    *,
    share: float = 0.8,
    pool: Named = 30,
    width: int = 1,
    budget: int = 10_000,
    held_out: Any = None,
    answers: Any = "answers",
    correct: Any = "correct",
) -> SmallestSet:
    """The smallest set of units that reaches a share of what a pool of units does to the mean objective.

    With m the mean objective over rows, a sufficient set C reaches ``(m(C kept) - m(nothing)) / (m(model) -
    m(nothing))``, where all units of the pool outside C are changed, in ``nothing`` all of them. A necessary set
    reaches ``(m(model) - m(C changed)) / (m(model) - m(nothing))``. Units outside the pool stay as they are.

    The search adds one unit at a time: to the best set so far (greedy), or to each of the best (beam). It finds no sets
    whose parts are worth nothing alone, and tells ``proven`` only where it has looked at all smaller sets.

    Args:
        effects: As in ``set_effects``.
        wanted: A ``sufficient`` or a ``necessary`` set.
        share: What it is to reach, above 0, at most 1.
        pool: So many at the top of the effects, or units by name.
        width: How many sets of each size are gone on from: 1 is the greedy search.
        budget: Most sets that are evaluated, each over all rows of the question.
        held_out: Rows that are none of the question's, as ``effects`` takes them, on which the set is judged; None: it
            is not.
        answers: Texts for all held-out rows, or the name of the column that has those of each row.
        correct: The correct answer of held-out rows, likewise.

    Returns:
        The set, also kept in ``effects.store``, one sufficient and one necessary. Where the budget ends before the
        share is reached, the set that reaches most.

    Raises:
        AnalysisError: As ``set_effects``, or the whole pool does next to nothing.
        ConfigurationError: A number is out of range, or there is no such kind of set.
        DataError: Held-out rows cannot be read, or are rows of the question.
        StoreError: The store cannot be written.
    """
    question = question_asked(effects)
    if wanted not in KINDS:
        raise ConfigurationError(f"There is no set that is {wanted!r}; there are {', '.join(KINDS)}.")
    check_share(share)
    for name, number in (("width", width), ("budget", budget)):
        check_count(name, number)
    units, kind = UnitPool.chosen(question, effects, pool), KINDS[wanted]
    rows = None if held_out is None else rows_held_out(question, held_out, answers, correct)
    keeps, n = kind is SufficientSet, len(units)

    def changed(sets: Tensor) -> Tensor:
        return ~sets if keeps else sets

    def compute() -> SmallestSet:
        measured = MeasuredSets(question, units)
        whole = Whole(measured.clean, measured.objectives(torch.ones(1, n, dtype=torch.bool))[0])
        if whole.near_zero:
            raise NothingToFindError(
                f"There is nothing of which a set could reach a share: {whole.near_zero}. Take another pool or value, "
                "or more rows."
            )

        def objectives(sets: Tensor) -> Floats:
            return np.concatenate([measured.objectives(changed(part)) for part in sets.split(max(1, AT_ONCE // n))])

        def reached(found: Floats) -> Floats:
            clean, nothing = whole.clean, whole.nothing
            shares: Floats = (kind.towards(found, clean, nothing) - nothing).mean(-1) / whole.effect
            return shares

        best, proven = _searched(n, share, width, lambda: budget - measured.evaluations, objectives, reached)
        flags = _flags([best.units], n)
        elsewhere = np.zeros((3, 0))
        if rows is not None:
            other = MeasuredSets(question, units, rows)
            elsewhere = np.stack([other.clean, *other.objectives(torch.cat([flags | True, changed(flags)]))])
        return kind(
            **told_of(question),
            share=share,
            reached=bool(best.path) and best.path[-1] >= share - SHARE_TOLERANCE,
            units=tuple(units.names[i] for i in best.units),
            path=np.array(best.path),
            search="greedy" if width == 1 else f"beam of width {width}",
            proven=proven and width > 1,
            evaluations=measured.evaluations,
            budget=budget,
            pool=units.names,
            pool_told=told_units(units),
            found_on=np.stack([whole.clean, whole.nothing, objectives(flags)[0] if best.rows is None else best.rows]),
            held_out=elsewhere,
        )

    return kind.once(effects, question, [share, units.names, width, budget, rows], compute)


@frozen(eq=False)
class _Found:
    """A set of units in the order in which they were taken, the shares on that way, and its objectives, ``[rows]``."""

    units: tuple[int, ...] = ()
    path: tuple[float, ...] = ()
    rows: Floats | None = field(default=None)


def _searched(
    n: int,
    share: float,
    width: int,
    left: Callable[[], int],
    objectives: Callable[[Tensor], Floats],
    reached: Callable[[Floats], Floats],
) -> tuple[_Found, bool]:
    """The set that reaches the share with the fewest units, else most of it; whether all smaller ones fell short."""
    beam, best, complete = [_Found()], _Found(), True
    for size in range(1, n + 1):
        ways: dict[frozenset[int], tuple[_Found, int]] = {}
        for item in beam:
            for i in (i for i in range(n) if i not in item.units):
                ways.setdefault(frozenset((*item.units, i)), (item, i))
        taken = list(ways.values())[: max(0, left())]
        if not taken:
            break
        found = objectives(_flags([(*item.units, i) for item, i in taken], n))
        shares = reached(found)
        order = np.argsort(-shares, kind="stable")[:width].tolist()
        beam = [
            _Found((*item.units, i), (*item.path, float(shares[k])), found[k]) for k in order for item, i in [taken[k]]
        ]
        if not best.path or beam[0].path[-1] > best.path[-1]:
            best = beam[0]
        if shares.max() >= share - SHARE_TOLERANCE:
            return beam[0], complete
        complete = complete and len(taken) == math.comb(n, size)
    return best, False


def _flags(sets: Sequence[Sequence[int]], n: int) -> Tensor:
    """Sets of units as flags, ``[k, n]``, bool."""
    flags = torch.zeros(len(sets), n, dtype=torch.bool)
    for flag, item in zip(flags, sets, strict=True):
        flag[list(item)] = True
    return flags
