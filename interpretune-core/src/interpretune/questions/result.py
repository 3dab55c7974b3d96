"""Effects of units, read: as tables, as Arrow, as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc

from interpretune.errors import StoreError
from interpretune.replay.effect_noise import noise_of, noise_text, warn_of_noise
from interpretune.store.fields import Field, Per
from interpretune.store.store import AnalysisStore
from interpretune.system.html_table import html_table

if TYPE_CHECKING:
    import pandas as pd

    from interpretune.questions.question import Question

ROW_FIELDS = (
    Field("row", "int64", about="row of the question"),
    Field("position", "int64", about="token of the prompt at which units are changed"),
    Field("token", "string", about="text of that token"),
    Field("prompts", "string", about="text of the prompt"),
    Field("answers", "string", ragged=True, about="texts that may follow"),
    Field("correct", "int64", about="index of the correct answer"),
    Field("predicted", "int64", about="index of the answer that the model rates highest; -1 where there is none"),
    Field("objective", "float64", about="of the model as it is"),
)
"""What is stored of rows and points, whatever is asked of them."""

FIELDS = (
    *ROW_FIELDS,
    Field("objective_spliced", "float64", about="with all dictionaries spliced in; the same where there are none"),
    Field("screened_out", "int64", about="units whose exact effects were left out for the budget"),
    Field("largest_screened", "float64", about="size of the largest gradient effect among them"),
    Field("effect_noise", "float64", Per.batch, about="what rounding alone does to an effect; 0 where not measured"),
    Field("effects", "float64", Per.latent, about="objective, clean minus with the unit changed; NaN where left out"),
    Field("activations", "float64", Per.latent, about="of the unit in the clean run; the norm of several coordinates"),
)


R = TypeVar("R", bound="Results")


class Results:
    """Results of a question, in a store.

    Attributes:
        store: The store; ``hook`` is the name of a unit set, and ``latent`` the id of a unit.
        asked: The question, where it was asked in this process: it holds the model. None for what was opened.
    """

    methods: ClassVar[tuple[str, ...]] = ()
    """Of the questions whose results it reads."""
    of_rows: ClassVar[tuple[str, ...]] = ()
    """Fields of rows, besides those of all questions."""
    columns: ClassVar[Mapping[str, str]] = {}
    """Columns of units, each with the field that it is."""
    asked: Question | None

    def __init__(self, store: AnalysisStore) -> None:
        """Read a store.

        Raises:
            StoreError: It holds something else.
        """
        self.store, self.asked = store, None
        if "question" not in store.manifest.about:
            raise StoreError(f"{store} holds no {type(self).__name__}: its manifest names no question.")
        if (method := self.question["method"]) not in self.methods:
            raise StoreError(
                f"{store} holds no {type(self).__name__}, but the results of a question of method {method}."
            )

    @classmethod
    def open(cls: type[R], folder: str | Path) -> R:
        """Open results in a folder.

        Raises:
            StoreError: There are none.
        """
        return cls(AnalysisStore.open(folder))

    @property
    def question(self) -> Mapping[str, Any]:
        """Objective, unit, value, method and unit sets, as the manifest has them."""
        return dict(self.store.manifest.about["question"])

    def rows(self) -> pd.DataFrame:
        """A line for each row: prompt, answers, what the model answers, the objective, and what belongs to the row."""
        own = [name for name in self.of_rows if name in self.store.fields]
        names = ["row", "prompts", "answers", "correct", "predicted", "objective", *own]
        table = pa.Table.from_batches(list(self.store.record_batches(names))).sort_by("example")
        return table.select(names).to_pandas().drop_duplicates("row").reset_index(drop=True)

    @property
    def share_correct(self) -> float:
        """Share of rows in which the model rates the correct answer highest; NaN where answers are not rated."""
        rows = self.rows().query("predicted >= 0")
        return float(np.mean(rows.correct == rows.predicted)) if len(rows) else float("nan")

    def to_arrow(self) -> pa.Table:
        """A line for each row, token and unit: ``row, position, units, unit``, and what is known of the unit there."""
        there = {name: column for name, column in self.columns.items() if column in self.store.fields}
        entries = pa.Table.from_batches(list(self.store.latents([*there.values()])))
        points = pa.Table.from_batches(list(self.store.record_batches(["row", "position"]))).sort_by("example")
        found = points.select(["row", "position"]).take(entries["example"])
        for name, column in {"units": "hook", "unit": "latent", **there}.items():
            found = found.append_column(name, entries[column])
        units = found["units"].cast(pa.string())
        return found.set_column(2, "units", units).sort_by([("row", "ascending"), ("position", "ascending")])

    def to_pandas(self) -> pd.DataFrame:
        """The same as a data frame."""
        return self.to_arrow().to_pandas()

    def _printed(self) -> pd.DataFrame:
        raise NotImplementedError

    def _heading(self) -> str:
        rated = self.share_correct
        told = "" if np.isnan(rated) else f".\nThe model rates the correct answer highest in {rated:.0%} of rows."
        return f"{self!r}{told}"

    def __str__(self) -> str:
        return f"{self._heading()}\n\n{self._printed().to_string(index=False, float_format='{:.4g}'.format)}"

    def _repr_html_(self) -> str:
        return html_table(self._heading(), self._printed().to_dict("records"))


class Effects(Results):
    """Effects of units on an objective, in a store.

    Effects that go straight to the logits (``direct_logit_attribution``) have a column ``alone`` too, and in ``rows``
    what they sum to.
    """

    methods: ClassVar[tuple[str, ...]] = ("exact", "gradient", "integrated_gradients", "direct")
    of_rows = ("objective_spliced", "before_cap", "bias", "rest")
    columns = {"effect": "effects", "activation": "activations", "alone": "alone"}  # noqa: RUF012

    @property
    def noise(self) -> float | None:
        """What rounding alone does to an effect on a row, as it was measured; None above 16 bits."""
        if "effect_noise" not in self.store.fields:
            return None
        return noise_of(batch["effect_noise"] for batch in self.store.batches(["effect_noise"]))

    def warn_of_noise(self) -> None:
        """Warn where rounding alone changes effects by more than a tenth of the largest."""
        if self.noise is not None:
            warn_of_noise(self.noise, self.to_pandas().effect.abs().max(), self.question["unit"])

    def _heading(self) -> str:
        noise = noise_text(self.noise, self.question["unit"])
        return super()._heading() + (f"\n{noise[0].upper()}{noise[1:]}: run the model in float32." if noise else "")

    def points(self) -> pd.DataFrame:
        """A line for each row and token at which units are changed, with what was left out there."""
        names = ["row", "position", "token", "screened_out", "largest_screened"]
        names = [name for name in names if name in self.store.fields]
        table = pa.Table.from_batches(list(self.store.record_batches(names))).sort_by("example")
        return table.select(names).to_pandas()

    def to_arrow(self) -> pa.Table:
        """A line for each row, token and unit that was changed: ``row, position, units, unit, effect, activation``.

        Units that have the value already are left out, their effects are 0; so are those beyond the budget.
        """
        found = super().to_arrow()
        return found.filter(pc.invert(pc.is_nan(found["effect"])))

    def top(self, n: int = 10) -> pd.DataFrame:
        """The units with the largest effects, by the mean size of their effects over all rows and tokens.

        Args:
            n: How many.

        Returns:
            ``unit``; ``mean_effect``; ``mean_size``, the mean of effects without their sign; ``largest``, the effect
            of the largest size; ``points``, how many of these have one. Effects that were left out for the budget
            count as 0.
        """
        numbers = self.to_pandas()
        sized = numbers.assign(size=numbers.effect.abs(), there=numbers.effect != 0)
        grouped = sized.groupby(["units", "unit"], observed=True)
        means = grouped[["effect", "size"]].sum() / self.store.n_examples
        found = means.set_axis(["mean_effect", "mean_size"], axis=1).assign(
            largest=numbers.effect.loc[grouped["size"].idxmax()].to_numpy(), points=grouped.there.sum()
        )
        found = found.reset_index()
        kinds = {item["name"]: item["kind"] for item in self.question["units"]}
        keys = zip(found.units, found.unit, strict=True)
        found.insert(0, "name", [unit_name(kinds[units], units, unit) for units, unit in keys])
        return found.sort_values("mean_size", ascending=False, kind="stable").head(n).reset_index(drop=True)

    def _printed(self) -> pd.DataFrame:
        return self.top().drop(columns=["units", "unit"])

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
            title=f"{told['objective']}: effects of units {self._kind}, {told['rows']} rows{self.left_out}",
            xaxis_title=", ".join(filter(None, ["mean effect", told["unit"]])) + " (in the order of the mean size)",
            yaxis={"autorange": "reversed"},
            template="plotly_white",
        )
        return figure

    def report(self, path: str | Path) -> Path:
        """Write a page about the effects, and about the evidence stored with them: one HTML file to be mailed.

        Args:
            path: The file.

        Returns:
            The file.

        Raises:
            StoreError: The store is damaged or not finished.
            OutputError: The file cannot be written.
        """
        page: Any = import_module(
            "interpretune.reports.page.html_page"
        )  # by its name: pages are made of results, above them
        written: Path = page.write_page([self], path)
        return written

    @property
    def _kind(self) -> str:
        told = self.question
        return "straight to the logits" if told["method"] == "direct" else f"set to {told['value']}"

    @property
    def left_out(self) -> str:
        """What the budget left out, in words; empty where nothing was."""
        if "screened_out" not in self.store.fields:
            return ""
        points = self.points()
        left_out, largest = points.screened_out.sum(), points.largest_screened.max()
        return f" ({left_out} left out for the budget, by gradient at most {largest:.3g})" if left_out else ""

    def __repr__(self) -> str:
        told = self.question
        units = ", ".join(
            f"{item['chosen']} {item['kind']}{'s' * (item['chosen'] != 1)} of {item['name']}"
            for item in told["units"][:3]
        )
        more = f" and {len(told['units']) - 3} more" if len(told["units"]) > 3 else ""
        return f"Effects on {told['objective']} over {told['rows']} rows of {units}{more}, {self._kind}{self.left_out}"


def unit_name(kind: str, units: str, unit: int) -> str:
    """A unit in words, by the kind and the name of its unit set: ``layers.3.attn_z head 2``."""
    return units if kind == "vector" else f"{units} {kind} {unit}"
