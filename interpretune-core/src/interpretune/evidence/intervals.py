"""Bootstrap intervals over rows: the one bootstrap of all that is told with an interval."""

from __future__ import annotations

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DRAWS = 2000
CONFIDENCE = 0.95
SEED = 0
AT_ONCE = 2**22
"""Most numbers of draws that are in memory at a time: rows may be many."""


@frozen(eq=False)
class Ratios:
    """Ratios of sums over rows, ``[k]`` each.

    Attributes:
        values: The ratios; NaN where the sum below is not above 0.
        low: Lower ends of their 95 % intervals; NaN where fewer than two rows count.
        high: Upper ends.
        spread: Standard deviations over the draws; NaN likewise.
    """

    values: Floats
    low: Floats
    high: Floats
    spread: Floats


def ratios_over_rows(parts: Floats, of: Floats) -> Ratios:
    """Sums of numbers of each row over the sum of another, such as means over tokens, with bootstrap intervals.

    Rows are drawn with replacement, ``DRAWS`` times, with a fixed seed, the same for all columns; draws whose
    denominator is not above 0 are left out. One row says nothing of how much others would differ, so that it has no
    interval.

    Args:
        parts: ``[n, k]``.
        of: ``[n]``, with a sum that is not negative; rows of 0 do not count.
    """
    below = of.sum()
    unknown = np.full(parts.shape[1], np.nan)
    values = parts.sum(0) / below if below > 0 else unknown
    if below <= 0 or (of != 0).sum() < 2:
        return Ratios(values, unknown, unknown, unknown)
    n, draw, drawn = len(of), np.random.default_rng(SEED), []
    for start in range(0, DRAWS, step := max(1, AT_ONCE // n)):
        weights = draw.multinomial(n, np.full(n, 1 / n), size=min(step, DRAWS - start)).astype(np.float64)
        sums = weights @ of
        drawn.append((weights @ parts)[sums > 0] / sums[sums > 0, None])
    found = np.concatenate(drawn)
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return Ratios(values, low, high, found.std(0))
