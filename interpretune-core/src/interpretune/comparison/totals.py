"""Agreement of totals over examples, within examples, and of examples, for many resamples at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from interpretune.comparison.agreement import MEASURES, Floats, measure
from interpretune.comparison.joining import Integers, Pairs

_AT_ONCE = 1 << 20
"""Numbers that are worked on at once."""


class TotalsOf:
    """Sums over drawn examples, for each column and resample.

    Args:
        columns: Hook and latent as in ``Pairs.column``, ascending.
        weights: How often each example is drawn, ``[resample, example]``.
    """

    def __init__(self, columns: Integers, weights: Floats) -> None:
        self._columns = columns
        self._weights = np.ascontiguousarray(weights.T)
        shape = (len(columns), weights.shape[0])
        self.left, self.right = np.zeros(shape), np.zeros(shape)
        self.there = np.zeros(shape, dtype=bool)

    def add(self, pairs: Pairs) -> None:
        """Count the pairs of some examples."""
        order = np.argsort(pairs.column, kind="stable")
        columns = np.searchsorted(self._columns, pairs.column[order])
        step = max(1, _AT_ONCE // self.left.shape[1])
        for start in range(0, len(order), step):
            some = order[start : start + step]
            index, first = np.unique(columns[start : start + step], return_index=True)
            weights = self._weights[pairs.example[some]]
            self.left[index] += np.add.reduceat(weights * pairs.left[some, None], first, axis=0)
            self.right[index] += np.add.reduceat(weights * pairs.right[some, None], first, axis=0)
            self.there[index] |= np.logical_or.reduceat(weights > 0, first, axis=0)


def measured_totals(totals: TotalsOf, chosen: Integers, top_k: int) -> Floats:
    """Agreement of the totals of chosen columns, ``[resample, 4]``; a latent that was not drawn is not there."""
    resamples = totals.left.shape[1]
    found = np.full((resamples, len(MEASURES)), np.nan)
    if len(chosen):
        for first, last in _chunks(resamples, len(chosen)):
            part = (chosen, slice(first, last))
            left, right, there = totals.left[part].T, totals.right[part].T, totals.there[part].T
            found[first:last] = measure(left, right, there.astype(np.float64), top_k)
    return found


def measured_examples(left: Floats, right: Floats, weights: Floats, top_k: int) -> Floats:
    """Agreement of numbers of examples, ``[resample, 4]``."""
    found = [measure(left, right, weights[first:last], top_k) for first, last in _chunks(len(weights), len(left))]
    return np.concatenate(found)


def mean_within(within: Floats, weights: Floats) -> Floats:
    """Means over examples of ``[example, 4]`` where it is defined, ``[resample, 4]``."""
    defined = np.isfinite(within)
    counts = weights @ defined.astype(np.float64)
    sums = weights @ np.where(defined, within, 0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def measured_within(pairs: Pairs, top_k: int) -> tuple[Integers, Floats]:
    """Agreement within each example of some pairs: the examples, and ``[example, 4]``."""
    examples, first, counts = np.unique(pairs.example, return_index=True, return_counts=True)
    found = np.empty((len(examples), len(MEASURES)))
    order = np.argsort(counts, kind="stable")  # alike lengths together: little padding
    for some in _batches(order, counts):
        width = int(counts[some].max())
        place = first[some, None] + np.arange(width)
        there = np.arange(width) < counts[some, None]
        place = np.where(there, place, 0)
        found[some] = measure(
            np.where(there, pairs.left[place], 0), np.where(there, pairs.right[place], 0), there.astype(float), top_k
        )
    return examples, found


def _batches(order: Integers, counts: Integers) -> Iterator[Integers]:
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * counts[order[stop]] <= _AT_ONCE:
            stop += 1
        yield order[start:stop]
        start = stop


def _chunks(resamples: int, width: int) -> Iterator[tuple[int, int]]:
    size = max(1, _AT_ONCE // max(width, 1))
    for first in range(0, resamples, size):
        yield first, min(resamples, first + size)
