"""Effects of units, read: as tables, as Arrow, as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa

from interpretune.errors import StoreError
from interpretune.store.fields import Field, Per
from interpretune.store.store import AnalysisStore

if TYPE_CHECKING:
    import pandas as pd

FIELDS = (
    Field("prompts", "string", about="text of the prompt"),
    Field("answers", "string", ragged=True, about="texts that may follow"),
    Field("correct", "int64", about="index of the correct answer"),
    Field("predicted", "int64", about="index of the answer that the model rates highest; -1 where there is none"),
    Field("objective", "float64", about="of the model as it is"),
    Field("objective_spliced", "float64", about="with all dictionaries spliced in; the same where there are none"),
    Field("effects", "float64", Per.latent, about="objective of the clean run minus that with the unit changed"),
    Field("activations", "float64", Per.latent, about="of the unit in the clean run; the norm of several coordinates"),
)


class Effects:
    """Effects of units on an objective, in a store.

    Attributes:
        store: The store; ``hook`` is the name of a unit set, and ``latent`` the id of a unit.
    """

    def __init__(self, store: AnalysisStore) -> None:
        """Read a store of effects.

        Raises:
            StoreError: It holds something else.
        """
        if "question" not in store.manifest.about:
            raise StoreError(f"{store} holds no effects of units: its manifest names no question.")
        self.store = store

    @classmethod
    def open(cls, folder: str | Path) -> Effects:
        """Open effects in a folder.

        Raises:
            StoreError: There are none.
        """
        return cls(AnalysisStore.open(folder))

    @property
    def question(self) -> Mapping[str, Any]:
        """Objective, unit, value, method and unit sets, as the manifest has them."""
        return dict(self.store.manifest.about["question"])

    def rows(self) -> pd.DataFrame:
        """A line for each row: prompt, answers, what the model answers, and the objective."""
        names = [item.name for item in FIELDS if item.per is Per.example]
        table = pa.Table.from_batches(list(self.store.record_batches(names)))
        return table.drop_columns(["batch"]).sort_by("example").to_pandas()

    def to_arrow(self) -> pa.Table:
        """A line for each row and unit whose change moves something: ``example, units, unit, effect, activation``."""
        table = pa.Table.from_batches(list(self.store.latents(["effects", "activations"])))
        table = table.rename_columns(["example", "units", "unit", "effect", "activation"])
        return table.sort_by([(name, "ascending") for name in ("example", "units", "unit")])

    def to_pandas(self) -> pd.DataFrame:
        """The same as a data frame."""
        return self.to_arrow().to_pandas()

    def top(self, n: int = 10) -> pd.DataFrame:
        """The units with the largest effects, by the mean size of their effects over all rows.

        Args:
            n: How many.

        Returns:
            ``unit``; ``mean_effect``; ``mean_size``, the mean of effects without their sign; ``largest``, the effect
            of the largest size; ``rows``, in how many rows its change has an effect.
        """
        grouped = self.to_pandas().groupby(["units", "unit"], observed=True).effect
        n_rows = self.store.n_examples
        found = grouped.agg(
            mean_effect=lambda effect: effect.sum() / n_rows,
            mean_size=lambda effect: effect.abs().sum() / n_rows,
            largest=lambda effect: effect.loc[effect.abs().idxmax()],
            rows=lambda effect: int((effect != 0).sum()),
        ).reset_index()
        kinds = {item["name"]: item["kind"] for item in self.question["units"]}
        found.insert(
            0, "name", [_named(kinds, units, unit) for units, unit in zip(found.units, found.unit, strict=True)]
        )
        return found.sort_values("mean_size", ascending=False, kind="stable").head(n).reset_index(drop=True)

    @property
    def share_correct(self) -> float:
        """Share of rows in which the model rates the correct answer highest."""
        rows = self.rows()
        return float(np.mean(rows.correct == rows.predicted))

    def plot(self, n: int = 20) -> go.Figure:
        """Bars of the mean effects of the top units.

        Args:
            n: How many units.
        """
        top = self.top(n)
        told = self.question
        figure = go.Figure(go.Bar(x=top.mean_effect, y=top.name, orientation="h", customdata=top.mean_size))
        figure.update_traces(hovertemplate="%{y}<br>mean effect %{x:.4g}<br>mean size %{customdata:.4g}<extra></extra>")
        figure.update_layout(
            title=f"{told['objective']}: effects of units set to {told['value']}, {told['rows']} rows",
            xaxis_title=f"mean effect, {told['unit']}" if told["unit"] else "mean effect",
            yaxis={"autorange": "reversed"},
            template="plotly_white",
        )
        return figure

    def __repr__(self) -> str:
        told = self.question
        units = ", ".join(f"{item['chosen']} {item['kind']}s of {item['name']}" for item in told["units"][:3])
        more = f" and {len(told['units']) - 3} more" if len(told["units"]) > 3 else ""
        return f"Effects on {told['objective']} over {told['rows']} rows of {units}{more}, set to {told['value']}"

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>{self.top()._repr_html_()}"


def _named(kinds: Mapping[str, str], units: str, unit: int) -> str:
    return units if kinds[units] == "vector" else f"{units} {kinds[units]} {unit}"
