"""Effects of sets of units: of any set, and of pairs beside those of single units."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from attrs import frozen
from torch import Tensor

from interpretune.circuits.measured_sets import MeasuredSets
from interpretune.circuits.stored_result import CircuitResult, Floats, told_of
from interpretune.circuits.unit_pool import Named, NothingToFindError, UnitPool
from interpretune.errors import AnalysisError
from interpretune.evidence.gathering import question_asked
from interpretune.evidence.intervals import ratios_over_rows
from interpretune.questions.question import Question
from interpretune.questions.result import Effects


@frozen(eq=False, repr=False)
class SetEffects(CircuitResult):
    """Effects of sets of units, the units of each changed together.

    Attributes:
        sets: Names of the units of each.
        effects: Objective of each row, clean minus with the set changed, ``[sets, rows]``.
        summed: Sums of the effects of the units of each set alone, ``[sets, rows]``.
    """

    kind: ClassVar[str] = "sets"

    sets: tuple[tuple[str, ...], ...]
    effects: Floats
    summed: Floats

    def to_pandas(self) -> pd.DataFrame:
        """A line for each set: its ``effect``, mean over rows, with its 95 % interval, and ``sum_of_single``."""
        frame = _with_intervals({"units": [", ".join(item) for item in self.sets]}, "effect", self.effects)
        return frame.assign(sum_of_single=self.summed.mean(-1))

    def __repr__(self) -> str:
        n = len(self.sets)
        return f"Effects on {self.objective} of {n} set{'s' * (n != 1)} of units set to {self.value}"


@frozen(eq=False, repr=False)
class PairEffects(CircuitResult):
    """Effects of pairs of units, and of each unit alone.

    Attributes:
        units: Their names, ``n``.
        single: Effect of each alone on each row, ``[n, rows]``.
        together: Effect of both of each pair, ``[n * (n - 1) / 2, rows]``: of the first with each that follows it, of
            the second with each that follows that, and so on.
    """

    kind: ClassVar[str] = "pairs"

    units: tuple[str, ...]
    single: Floats
    together: Floats

    @property
    def interactions(self) -> Floats:
        """Effect of both minus the sum of the effects of each alone, ``[n * (n - 1) / 2, rows]``."""
        first, second = self._pairs
        return self.together - self.single[first] - self.single[second]

    @property
    def _pairs(self) -> tuple[list[int], list[int]]:
        found = list(combinations(range(len(self.units)), 2))
        return [i for i, _ in found], [j for _, j in found]

    def to_pandas(self) -> pd.DataFrame:
        """A line for each pair, largest mean interaction first, all means over rows; the interaction with its interval.

        Returns:
            ``first``, ``second``, ``effect`` of both, ``sum_of_single``, ``interaction``, ``low``, ``high``.
        """
        first, second = self._pairs
        interactions = self.interactions
        both = self.together.mean(-1)
        names = {"first": [self.units[i] for i in first], "second": [self.units[j] for j in second]}
        told = {**names, "effect": both, "sum_of_single": both - interactions.mean(-1)}
        return _with_intervals(told, "interaction", interactions).sort_values(
            "interaction", key=np.abs, ascending=False, kind="stable", ignore_index=True
        )

    def plot(self) -> go.Figure:
        """A map of the mean interactions."""
        n, (first, second) = len(self.units), self._pairs
        shown = np.full((n, n), np.nan)
        shown[first, second] = shown[second, first] = self.interactions.mean(-1)
        figure = go.Figure(go.Heatmap(z=shown, x=self.units, y=self.units, colorscale="RdBu", zmid=0))
        figure.update_traces(hovertemplate="%{y}<br>%{x}<br>interaction %{z:.4g}<extra></extra>")
        figure.update_layout(
            title=f"{self.objective}: interaction of pairs set to {self.value}, {self.single.shape[1]} rows",
            yaxis={"autorange": "reversed"},
            template="plotly_white",
        )
        return figure

    def __repr__(self) -> str:
        rows = self.single.shape[1]
        return (
            f"Effects on {self.objective} of {len(self.together)} pairs of {len(self.units)} units set to {self.value},"
            f" {rows} row{'s' * (rows != 1)}"
        )


def set_effects(effects: Effects, sets: Sequence[Sequence[str] | Sequence[tuple[str, int]]]) -> SetEffects:
    """Effect of each of several sets of units, those of a set changed together at all tokens of the question.

    Args:
        effects: What ``effects`` returned in this process: it knows the model and the question.
        sets: Units of each set, by their names (``layers.3.attn_z head 2``) or by unit set and id.

    Returns:
        The effects, also kept in ``effects.store``.

    Raises:
        AnalysisError: The effects were not asked in this process, or there are no such units.
        StoreError: The store cannot be written.
    """
    question = question_asked(effects)
    whole = UnitPool.of_all(question)
    given = [whole.found([item] if isinstance(item, str) else [*item]) for item in sets]
    if not given or any(not len(item) for item in given):
        raise AnalysisError("There are no units to change: a set is empty, or there is none.")
    used = torch.cat(given).unique()
    pool = whole.select(used)
    flags = torch.zeros(len(given), len(pool), dtype=torch.bool)
    for flag, item in zip(flags, given, strict=True):
        flag[torch.searchsorted(used, item)] = True

    def compute() -> SetEffects:
        single, both = _effects(question, pool, flags)
        names = tuple(tuple(pool.names[i] for i in flag.nonzero().flatten().tolist()) for flag in flags)
        return SetEffects(**told_of(question), sets=names, effects=both, summed=flags.double().numpy() @ single)

    return SetEffects.once(effects, question, [pool.names, flags], compute)


def pair_effects(effects: Effects, units: Named = 20) -> PairEffects:
    """Effects of all pairs of units changed together, and how far they are from the sum of the single ones.

    Args:
        effects: As in ``set_effects``.
        units: So many at the top of the effects, or units by name.

    Returns:
        The effects, also kept in ``effects.store``.

    Raises:
        AnalysisError: As ``set_effects``, or there is only one unit.
        ConfigurationError: The number is out of range.
        StoreError: The store cannot be written.
    """
    question = question_asked(effects)
    pool = UnitPool.chosen(question, effects, units)
    if len(pool) < 2:
        raise NothingToFindError(f"A pair needs two units, and there is one: {pool.names[0]}.")

    def compute() -> PairEffects:
        pairs = torch.combinations(torch.arange(len(pool)))
        flags = torch.zeros(len(pairs), len(pool), dtype=torch.bool).scatter_(1, pairs, True)
        single, together = _effects(question, pool, flags)
        return PairEffects(**told_of(question), units=pool.names, single=single, together=together)

    return PairEffects.once(effects, question, [pool.names], compute)


def _effects(question: Question, pool: UnitPool, sets: Tensor) -> tuple[Floats, Floats]:
    """Effects of each unit alone, ``[n, rows]``, and of sets, ``[k, n]``, bool: ``[k, rows]``."""
    measured = MeasuredSets(question, pool)
    n = len(pool)
    found = measured.clean - measured.objectives(torch.cat([torch.eye(n, dtype=torch.bool), sets]))
    return found[:n], found[n:]


def _with_intervals(told: dict[str, object], name: str, values: Floats) -> pd.DataFrame:
    """Columns, and means over rows of ``[k, rows]`` with their intervals."""
    mean = ratios_over_rows(values.T, np.ones(values.shape[1]))
    return pd.DataFrame({**told, name: mean.values, "low": mean.low, "high": mean.high})
