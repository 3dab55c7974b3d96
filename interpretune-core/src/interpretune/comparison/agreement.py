"""Measures of agreement between two rows of numbers, for many rows at once, with weights.

All take ``x``, ``y`` and ``weights`` that broadcast to ``[..., n]`` and return ``[...]``. A weight says how often a
pair is there: the counts of a bootstrap resample, or 0 for a pair that is not. NaN where a measure is undefined.

Intervals come of drawing examples again, with replacement (Efron, 1979; percentile intervals).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from attrs import field, frozen, validators
from numpy.typing import NDArray

from interpretune.comparison.joining import Integers, Pairs

Floats = NDArray[np.float64]

MEASURES = ("pearson", "spearman", "top-k overlap", "sign agreement")


def measure(x: Floats, y: Floats, weights: Floats, top_k: int) -> Floats:
    """All of ``MEASURES``, in that order, ``[..., 4]``."""
    found = (pearson(x, y, weights), spearman(x, y, weights), overlap(x, y, weights, top_k), signs(x, y, weights))
    return np.stack(found, axis=-1)


def pearson(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Pearson's correlation; undefined where either side is constant."""
    x, y, weights = np.broadcast_arrays(x, y, weights)
    total = weights.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        dx = np.where(weights > 0, x - (weights * x).sum(-1, keepdims=True) / total, 0)
        dy = np.where(weights > 0, y - (weights * y).sum(-1, keepdims=True) / total, 0)
        # Scaled first: the squares of tiny or huge numbers would leave the range of float64.
        dx = dx / np.abs(dx).max(-1, keepdims=True, initial=0)
        dy = dy / np.abs(dy).max(-1, keepdims=True, initial=0)
        r = (weights * dx * dy).sum(-1) / np.sqrt((weights * dx**2).sum(-1) * (weights * dy**2).sum(-1))
    defined = _varies(x, weights) & _varies(y, weights)
    return np.where(defined, np.clip(r, -1, 1), np.nan)


def spearman(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Spearman's rank correlation: Pearson's of the average ranks."""
    return pearson(average_ranks(x, weights), average_ranks(y, weights), weights)


def average_ranks(values: Floats, weights: Floats) -> Floats:
    """Rank of each value among all, from 1; equal values share the mean of their ranks.

    With weights it is the rank in the list in which each value is repeated as often as its weight says.
    """
    values, weights = np.broadcast_arrays(values, weights)
    order = np.argsort(values, axis=-1)  # in any order among equal ones
    ordered = np.take_along_axis(values, order, axis=-1)
    through = np.cumsum(np.take_along_axis(weights, order, axis=-1), axis=-1)  # never falls, hence the accumulations
    first = np.ones(ordered.shape, dtype=bool)
    first[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    before = np.zeros_like(through)
    before[..., 1:] = through[..., :-1]
    start = np.maximum.accumulate(np.where(first, before, 0), axis=-1)
    last = np.ones_like(first)
    last[..., :-1] = first[..., 1:]
    end = np.minimum.accumulate(np.where(last, through, np.inf)[..., ::-1], axis=-1)[..., ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (start + end + 1) / 2, axis=-1)
    return ranks


def overlap(x: Floats, y: Floats, weights: Floats, top_k: int) -> Floats:
    """Share that the ``top_k`` of largest magnitude on each side have in common.

    Zeros are never among them; where a side has fewer than ``top_k`` other numbers, the longer side counts as the
    whole. Equal magnitudes are taken in their order. Undefined where both sides are zero throughout.
    """
    x, y, weights = np.broadcast_arrays(x, y, weights)
    one, other = _largest(x, weights, top_k), _largest(y, weights, top_k)
    whole = np.maximum(one.sum(-1), other.sum(-1))
    return np.where(whole > 0, (one & other).sum(-1) / np.maximum(whole, 1), np.nan)


def signs(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Share of the pairs without a zero whose signs are equal; undefined where there is no such pair."""
    counted = weights * ((x != 0) & (y != 0))
    total = counted.sum(-1)
    return np.where(total > 0, (counted * ((x > 0) == (y > 0))).sum(-1) / np.maximum(total, 1), np.nan)


def _varies(values: Floats, weights: Floats) -> NDArray[np.bool_]:
    """Whether a row has two different numbers. Its variance does not tell: rounding makes it tiny, not zero."""
    there = weights > 0
    highest = np.where(there, values, -np.inf).max(-1, initial=-np.inf)
    lowest = np.where(there, values, np.inf).min(-1, initial=np.inf)
    return highest > lowest


def _largest(values: Floats, weights: Floats, top_k: int) -> NDArray[np.bool_]:
    """Which are the largest; a partition and a count of ties, as sorting takes most of the time otherwise."""
    size = np.where(weights > 0, np.abs(values), 0)
    if size.shape[-1] <= top_k:
        return size > 0
    least = np.partition(size, -top_k, axis=-1)[..., -top_k, None]
    above, level = size > least, size == least
    room = top_k - above.sum(-1, keepdims=True)
    return (above | (level & (np.cumsum(level, axis=-1) <= room))) & (size > 0)


_HELD = 1 << 25
"""Numbers that one chunk of resamples may take."""


@frozen
class Resampling:
    """How examples are drawn, and what is asked of each resample.

    Attributes:
        resamples: How many; 0 for no intervals.
        confidence: Share of the resamples that an interval holds.
        seed: Seed.
        top_k: How many of the largest magnitude the overlap looks at.
    """

    resamples: int = field(validator=validators.ge(0))
    confidence: float = field(validator=[validators.gt(0), validators.lt(1)])
    seed: int = field(validator=validators.ge(0))
    top_k: int = field(validator=validators.ge(1))

    def weights(self, examples: int, width: int) -> Iterator[Floats]:
        """How often each example is drawn, ``[resample, example]``, a chunk of resamples at a time.

        Args:
            examples: Number of examples.
            width: Numbers that each resample takes; decides how many come together, not what is drawn.
        """
        size = max(1, _HELD // max(width, 1))
        for first in range(0, self.resamples, size):
            yield draws(examples, first, min(self.resamples, first + size), self.seed)

    def interval(self, values: Sequence[Floats]) -> Floats:
        """Percentile intervals ``[2, 4]`` of chunks ``[resample, 4]``; undefined resamples are left out."""
        found = np.full((2, len(MEASURES)), np.nan)
        for i, column in enumerate(np.concatenate(values).T if values else ()):
            defined = column[np.isfinite(column)]
            if len(defined):
                found[:, i] = np.quantile(defined, [(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        return found


def draws(examples: int, first: int, last: int, seed: int) -> Floats:
    """How often each example is in the resamples ``first`` to ``last``, ``[last - first, examples]``.

    Resample ``i`` depends on the seed and ``i`` alone, not on how they are chunked.
    """
    counts = np.empty((last - first, examples))
    for i in range(first, last):
        drawn = np.random.default_rng([seed, i]).integers(examples, size=examples)
        counts[i - first] = np.bincount(drawn, minlength=examples)
    return counts


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
