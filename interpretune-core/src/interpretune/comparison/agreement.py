"""Measures of agreement between two rows of numbers, for many rows at once, with weights.

All take ``x``, ``y`` and ``weights`` that broadcast to ``[..., n]`` and return ``[...]``. A weight says how often a
pair is there: the counts of a bootstrap resample, or 0 for a pair that is not. NaN where a measure is undefined.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
