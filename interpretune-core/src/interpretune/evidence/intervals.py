"""Bootstrap intervals over rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
SEED = 0


def share_and_interval(parts: NDArray[np.float64], of: NDArray[np.float64]) -> tuple[float, float, float]:
    """The sum of one number of each row over the sum of another, with its 95 % bootstrap interval.

    Rows are drawn with replacement, ``DRAWS`` times, with a fixed seed; draws whose denominator is 0 are left out.

    Args:
        parts: ``[n]``.
        of: ``[n]``, not negative.

    Returns:
        Ratio, lower end, upper end; NaN where the denominator is 0.
    """
    if not of.sum() > 0:
        return float("nan"), float("nan"), float("nan")
    draw, n = np.random.default_rng(SEED), len(parts)
    drawn = (draw.multinomial(n, np.full(n, 1 / n)) for _ in range(DRAWS))  # one at a time: rows may be many
    ratios = [weights @ parts / below for weights in drawn if (below := weights @ of) > 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(parts.sum() / of.sum()), float(low), float(high)
