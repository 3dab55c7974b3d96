"""Shapley values of units, by permutations."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from attrs import frozen

from interpretune.circuits.measured_sets import MeasuredSets
from interpretune.circuits.stored_result import CircuitResult, Floats, check_seed, told_of
from interpretune.circuits.unit_pool import Named, UnitPool
from interpretune.evidence.gathering import question_asked
from interpretune.evidence.intervals import ratios_over_rows
from interpretune.questions.model_and_rows import check_count
from interpretune.questions.result import Effects


@frozen(eq=False, repr=False)
class ShapleyValues(CircuitResult):
    """Shapley values of units: the mean, over orders of the units, of what changing a unit adds to those before it.

    They add up to the effect of changing all of the units, on each row.

    Attributes:
        units: Names of the units, ``n``.
        values: Of each on each row, ``[n, rows]``.
        standard_errors: Of the means over rows, for the orders that were drawn, ``[n]``; NaN for one order.
        single: Effect of each alone on each row, ``[n, rows]``.
        total: Effect of all together on each row, ``[rows]``.
        permutations: How many orders were drawn.
        seed: Of these.
        evaluations: Sets of units whose objective was computed over all rows.
    """

    kind: ClassVar[str] = "shapley"

    units: tuple[str, ...]
    values: Floats
    standard_errors: Floats
    single: Floats
    total: Floats
    permutations: int
    seed: int
    evaluations: int

    def to_pandas(self) -> pd.DataFrame:
        """A line for each unit, largest mean value first.

        Returns:
            ``unit``; ``shapley``, the mean over rows; ``standard_error``, for the orders that were drawn; ``low`` and
            ``high``, the 95 % interval over rows; ``effect``, of the unit alone.
        """
        mean = ratios_over_rows(self.values.T, np.ones(len(self.total)))
        found = {
            "unit": self.units,
            "shapley": mean.values,
            "standard_error": self.standard_errors,
            "low": mean.low,
            "high": mean.high,
            "effect": self.single.mean(-1),
        }
        return pd.DataFrame(found).sort_values("shapley", key=np.abs, ascending=False, kind="stable", ignore_index=True)

    def plot(self) -> go.Figure:
        """Bars of the mean values with their standard errors, beside the effects of the units alone."""
        told = self.to_pandas()
        figure = go.Figure()
        errors = {"type": "data", "array": told.standard_error}
        figure.add_bar(x=told.shapley, y=told.unit, orientation="h", name="Shapley value", error_x=errors)
        figure.add_bar(x=told.effect, y=told.unit, orientation="h", name="effect alone")
        figure.update_traces(hovertemplate="%{y}<br>%{x:.4g}<extra></extra>")
        figure.update_layout(
            title=f"{self.objective}: Shapley values, {len(self.total)} rows",
            xaxis_title=", ".join(filter(None, ["mean over rows", self.unit])),
            yaxis={"autorange": "reversed"},
            template="plotly_white",
        )
        return figure

    def __repr__(self) -> str:
        return (
            f"Shapley values on {self.objective} of {len(self.units)} units set to {self.value}, {len(self.total)} "
            f"row{'s' * (len(self.total) != 1)}, {self.permutations} orders: they add up to {self.total.mean():.4g}"
        )


def shapley_values(effects: Effects, units: Named = 20, *, permutations: int = 100, seed: int = 0) -> ShapleyValues:
    """Share of each unit in the effect of changing all of them (Castro, Gómez and Tejada 2009, algorithm 1).

    Units are changed one after the other in orders drawn at random; a unit's value is the mean of what its change
    adds. Each order adds up to the effect of all of them, and so do the values.

    Args:
        effects: As in ``set_effects``.
        units: So many at the top of the effects, or units by name.
        permutations: How many orders are drawn; each takes as many sets of units as there are units.
        seed: Of these.

    Returns:
        The values, also kept in ``effects.store``.

    Raises:
        AnalysisError: As ``set_effects``.
        ConfigurationError: A number is out of range.
        StoreError: The store cannot be written.
    """
    question = question_asked(effects)
    check_count("permutations", permutations)
    check_seed(seed)
    pool = UnitPool.chosen(question, effects, units)
    n = len(pool)

    def compute() -> ShapleyValues:
        draw = np.random.default_rng(seed)
        orders = torch.from_numpy(np.stack([draw.permutation(n) for _ in range(permutations)]))
        before = orders.argsort(-1).unsqueeze(1) < torch.arange(n + 1).view(1, -1, 1)  # the first 0, 1, ... n units
        measured = MeasuredSets(question, pool)
        alone = measured.objectives(torch.eye(n, dtype=torch.bool))
        found = measured.objectives(before.flatten(0, 1)).reshape(permutations, n + 1, -1)
        added = np.empty((permutations, n, found.shape[-1]))
        np.put_along_axis(added, orders.numpy()[..., None], found[:, :-1] - found[:, 1:], axis=1)
        spread = added.mean(-1).std(0, ddof=1) if permutations > 1 else np.full(n, np.nan)
        return ShapleyValues(
            **told_of(question),
            units=pool.names,
            values=added.mean(0),
            standard_errors=spread / permutations**0.5,
            single=measured.clean - alone,
            total=found[0, 0] - found[0, -1],
            permutations=permutations,
            seed=seed,
            evaluations=measured.evaluations,
        )

    return ShapleyValues.once(effects, question, [pool.names, permutations, seed], compute)
