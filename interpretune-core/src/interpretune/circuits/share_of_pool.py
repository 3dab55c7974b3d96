"""How much of what all units of a pool do a set of them does, over rows."""

from __future__ import annotations

import numpy as np
from attrs import frozen

from interpretune.circuits.stored_result import Floats
from interpretune.errors import ConfigurationError
from interpretune.evidence.intervals import Ratios, ratios_over_rows

NEXT_TO_NOTHING = 1e-6
"""Part of the objective's size below which a difference may be rounding alone."""


@frozen(eq=False)
class Whole:
    """What changing all units of a pool does.

    Attributes:
        clean: Objective of each row with nothing changed, ``[rows]``.
        nothing: With all units of the pool changed, ``[rows]``.
    """

    clean: Floats
    nothing: Floats

    @property
    def effect(self) -> float:
        """Mean over rows."""
        return float((self.clean - self.nothing).mean())

    @property
    def near_zero(self) -> str:
        """Why nothing is told as a share of it, in words; empty where it can be."""
        effect, rows = self.clean - self.nothing, len(self.clean)
        told = f"changing all units of the pool changes the mean objective by {self.effect:.3g} over {rows} rows"
        if abs(self.effect) <= NEXT_TO_NOTHING * max(np.abs(self.clean).max(), np.abs(self.nothing).max()):
            return f"{told}, which is next to nothing"
        mean = ratios_over_rows(effect[:, None], np.ones(rows))
        if mean.low[0] <= 0 <= mean.high[0]:
            return f"{told}, with a 95 % interval from {mean.low[0]:.3g} to {mean.high[0]:.3g}, in which 0 lies"
        return ""

    def shares(self, objectives: Floats) -> Ratios:
        """``(m(C) - m(nothing)) / (m(model) - m(nothing))`` of objectives ``[k, rows]``, m being the mean over rows.

        NaN where that would divide by next to nothing. Intervals are of the ratio of means: rows are drawn once for
        both.
        """
        sign = np.sign(self.effect)
        found = ratios_over_rows(sign * (objectives - self.nothing).T, sign * (self.clean - self.nothing))
        if not self.near_zero:
            return found
        unknown = np.full(len(objectives), np.nan)
        return Ratios(unknown, unknown, unknown, unknown)


def check_share(share: float) -> None:
    """Refuse a number that is no share.

    Raises:
        ConfigurationError: It is not above 0, or above 1.
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ConfigurationError(f"share is {share!r}; it must be above 0 and at most 1.")
