"""The units of questions by their effects, with intervals of a bootstrap over rows, exact beside approximate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from interpretune.errors import StoreError
from interpretune.evidence.intervals import CONFIDENCE, Floats, Ratios, ratios_over_rows
from interpretune.questions.result import Effects, unit_name
from interpretune.reports.page.text import set_to
from interpretune.store.latents import hook_codes

Integers = NDArray[np.int64]

LEAST_ROWS = 5
"""Rows without which no effect is told apart from 0: a bootstrap of fewer says too little."""
MOST_UNITS = 2**27
"""Units of a store, of which sums are in memory."""
MOST_ANSWERS = 3
"""Different correct answers for each of which there is a mean effect of its own."""


@frozen
class Ranked:
    """A unit and its effects.

    Attributes:
        name: In words, with what it is set to where that differs.
        store: Number of the store that has its effects, among those of the ranking.
        units: Its unit set.
        unit: Its id there.
        value: What it is set to, as the question has it.
        method: How its effects were found.
        mean: Mean effect over rows and tokens.
        low: Lower end of the 95 % bootstrap interval of that over rows; NaN with one row.
        high: Upper end.
        size: Mean of the effects without their signs, by which units are ranked.
        sure: Whether an interval as wide as the number of all units (Bonferroni) and of rows (Student) asks for leaves
            out 0: of the mean, or of the mean over the rows of one correct answer.
        share_active: Share of rows in which it is active.
        by_answer: Mean effect over the rows of each correct answer.
        approximate: Mean effect by another method, not exact; None: there is none.
    """

    name: str
    store: int
    units: str
    unit: int
    value: str | float
    method: str
    mean: float
    low: float
    high: float
    size: float
    sure: bool
    share_active: float
    by_answer: tuple[float, ...]
    approximate: float | None


@frozen
class Ranking:
    """The top units.

    Attributes:
        units: Those with the largest effects, largest first.
        compared: Number of units in all.
        answers: The correct answers, if they are few, as in ``Ranked.by_answer``.
        approximate: Method of the approximate effects; None: there are none.
        correlation: Pearson, over all units, of mean effects, exact and approximate; None or NaN where it is undefined.
    """

    units: tuple[Ranked, ...]
    compared: int
    answers: tuple[str, ...]
    approximate: str | None
    correlation: float | None


class _Sums:
    """Effects of all units of a store, summed over rows and tokens; the units of its sets follow each other."""

    def __init__(self, effects: Effects) -> None:
        self.effects, told = effects, effects.question
        self.sets = {item["name"]: item for item in told["units"]}
        self.names = list(self.sets)
        self.counts = np.array([item["size"] for item in self.sets.values()], dtype=np.int64)
        if not (self.counts >= 0).all() or sum(self.counts.tolist()) > MOST_UNITS:
            raise StoreError(f"{effects.store} is of more units than the {MOST_UNITS:,} that a page ranks.")
        self.ends = np.cumsum(self.counts)
        size = int(self.ends[-1]) if len(self.ends) else 0
        self.total, self.sizes = np.zeros(size), np.zeros(size)
        for _, places, values, _ in self.entries():
            self.total += np.bincount(places, values, size)
            self.sizes += np.bincount(places, np.abs(values), size)
        self.mean, self.size = (found / max(effects.store.n_examples, 1) for found in (self.total, self.sizes))

    def entries(self) -> Iterator[tuple[Integers, Integers, Floats, Floats]]:
        """Examples, places, effects and activations, a few rows at a time; what was left out for the budget is 0."""
        columns = ["effects", *(["activations"] if "activations" in self.effects.store.fields else [])]
        starts = np.concatenate([[0], self.ends[:-1]])
        for batch in self.effects.store.latents(columns):
            sets, ids = hook_codes(batch.column("hook"), self.names), _numbers(batch, "latent").astype(np.int64)
            if (sets < 0).any() or (ids >= self.counts[sets]).any():
                raise StoreError(f"{self.effects.store} has effects of units that its question does not name.")
            places = starts[sets] + ids
            effects = np.nan_to_num(_numbers(batch, "effects"))
            active = _numbers(batch, "activations") if len(columns) > 1 else effects
            yield _numbers(batch, "example").astype(np.int64), places, effects, active

    def key(self, place: int) -> tuple[str, int]:
        """Unit set and id."""
        number = int(np.searchsorted(self.ends, place, side="right"))
        before = int(self.ends[number - 1]) if number else 0
        return self.names[number], place - before

    def place(self, units: str, unit: int) -> int | None:
        """The place of a unit, if it is there."""
        if units not in self.sets or unit >= self.sets[units]["size"]:
            return None
        number = self.names.index(units)
        return unit + (int(self.ends[number - 1]) if number else 0)


def _numbers(batch: Any, name: str) -> NDArray[Any]:
    found: NDArray[Any] = batch.column(name).to_numpy(zero_copy_only=False)
    return found


def rank(results: Sequence[Effects], approximations: Sequence[Effects], n: int) -> Ranking:
    """Rank the units of several questions about the same rows.

    Args:
        results: Their effects, each unit once.
        approximations: Effects of the same units by another method.
        n: How many units.
    """
    sums = [_Sums(item) for item in results]
    others = [_Sums(item) for item in approximations]
    order = sorted(
        ((float(found.size[place]), -i, -int(place)) for i, found in enumerate(sums) for place in _largest(found, n)),
        reverse=True,
    )[:n]
    compared = sum(item["chosen"] for found in sums for item in found.sets.values())
    answers = _answers(results[0])
    several = len({str(item.question["value"]) for item in results}) > 1
    ranked: dict[tuple[int, int], Ranked] = {}
    for i, found in enumerate(sums):
        places = [-place for _, store, place in order if store == -i]
        beside = [item for item in others if item.effects.question["value"] == found.effects.question["value"]]
        made = _ranked(i, found, places, answers, compared, beside, several)
        ranked |= {(-i, -place): unit for place, unit in made.items()}
    return Ranking(
        units=tuple(ranked[store, place] for _, store, place in order),
        compared=compared,
        answers=tuple(answers),
        approximate=str(approximations[0].question["method"]) if approximations else None,
        correlation=_correlation(sums, others) if others else None,
    )


def _largest(found: _Sums, n: int) -> Integers:
    order: Integers = np.argsort(-found.size, kind="stable")[:n]
    return order[found.size[order] > 0]


def _answers(effects: Effects) -> Mapping[str, Integers]:
    """Rows of each correct answer, where these are few and have rows enough for an interval."""
    rows = effects.rows()
    if not len(rows) or not all(len(item) for item in rows.answers):
        return {}
    correct = np.array([item[i] for item, i in zip(rows.answers, rows.correct, strict=True)], dtype=object)
    found = {str(answer): np.flatnonzero(correct == answer) for answer in dict.fromkeys(correct)}
    return found if 1 < len(found) <= MOST_ANSWERS and min(map(len, found.values())) > 1 else {}


def _ranked(
    store: int,
    found: _Sums,
    places: list[int],
    answers: Mapping[str, Integers],
    compared: int,
    beside: Sequence[_Sums],
    told_apart: bool,
) -> dict[int, Ranked]:
    """Units of one store, by place."""
    if not places:
        return {}
    effects, active, points = _by_row(found, places)
    over_all = ratios_over_rows(effects, points)
    z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / (compared * (1 + len(answers))))
    sure, split = _apart(over_all, len(points), z), []
    for rows in answers.values():
        own = ratios_over_rows(effects[rows], points[rows])
        split.append(own.values)
        sure |= _apart(own, len(rows), z)
    told = found.effects.question
    kinds = {name: item["kind"] for name, item in found.sets.items()}
    told_value = f" {set_to(told['value'])}" if told_apart else ""
    made = {}
    for i, place in enumerate(places):
        units, unit = found.key(place)
        there = [item.mean[at] for item in beside if (at := item.place(units, unit)) is not None]
        made[place] = Ranked(
            name=unit_name(kinds[units], units, unit) + told_value,
            store=store,
            units=units,
            unit=unit,
            value=told["value"],
            method=told["method"],
            mean=float(over_all.values[i]),
            low=float(over_all.low[i]),
            high=float(over_all.high[i]),
            size=float(found.size[place]),
            sure=bool(sure[i]),
            share_active=float(active[:, i].mean()),
            by_answer=tuple(float(own[i]) for own in split),
            approximate=float(there[0]) if there else None,
        )
    return made


def _by_row(found: _Sums, places: list[int]) -> tuple[Floats, NDArray[np.bool_], Floats]:
    """Sums of effects, whether the unit is active, ``[row, unit]``, and the number of tokens, ``[row]``."""
    read = [
        np.stack([_numbers(batch, name).astype(np.int64) for name in ("example", "row")])
        for batch in found.effects.store.record_batches(["example", "row"])
    ]
    examples, rows = np.concatenate(read, axis=1)
    _, of_row, points = np.unique(rows, return_inverse=True, return_counts=True)
    row_of = np.zeros(examples.max() + 1, dtype=np.int64)
    row_of[examples] = of_row
    column = np.full(len(found.total), -1)
    column[places] = np.arange(len(places))
    effects, active = np.zeros((len(points), len(places))), np.zeros((len(points), len(places)), dtype=bool)
    for there, at, values, activations in found.entries():
        ours = column[at] >= 0
        cells = row_of[there[ours]], column[at[ours]]
        np.add.at(effects, cells, values[ours])
        np.logical_or.at(active, cells, activations[ours] != 0)
    return effects, active, points.astype(np.float64)


def _apart(found: Ratios, n_rows: int, z: float) -> NDArray[np.bool_]:
    """Whether means of rows are told apart from 0, at the probability of so many standard deviations of a normal.

    The spread of few rows is uncertain itself, and among thousands of units some have a small one by accident. So it is
    Student's t that is asked, by Wallace's formula (1959), which is off by little and to the safe side.
    """
    if n_rows < LEAST_ROWS:
        return np.zeros(len(found.values), dtype=bool)
    degrees = n_rows - 1
    t = math.sqrt(degrees * math.expm1((z * (8 * degrees + 3) / (8 * degrees + 1)) ** 2 / degrees))
    apart: NDArray[np.bool_] = np.abs(found.values) > t * math.sqrt(n_rows / degrees) * found.spread
    return apart


def _correlation(sums: Sequence[_Sums], others: Sequence[_Sums]) -> float:
    pairs = []
    for found in sums:
        for other in others:
            if found.effects.question["value"] != other.effects.question["value"]:
                continue
            for name, item in found.sets.items():
                if name in other.sets and other.sets[name]["size"] == item["size"]:
                    one, two = found.place(name, 0), other.place(name, 0)
                    pairs.append((found.mean[one:][: item["size"]], other.mean[two:][: item["size"]]))
    x, y = (np.concatenate(side) for side in zip(*pairs, strict=True)) if pairs else (np.zeros(0), np.zeros(0))
    there = (x != 0) | (y != 0)
    if there.sum() < 2 or not x[there].std() or not y[there].std():
        return float("nan")
    return float(np.corrcoef(x[there], y[there])[0, 1])
