"""Intervals by drawing examples again, with replacement (Efron, 1979; percentile intervals)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from attrs import field, frozen, validators

from interpretune.comparison.agreement import MEASURES, Floats

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
