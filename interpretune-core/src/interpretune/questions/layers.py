"""What the logit lens reads at each layer: as tables, and as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from interpretune.questions.result import ROW_FIELDS, Results
from interpretune.store.fields import Field, Per

if TYPE_CHECKING:
    import pandas as pd

LAYER_FIELDS = (
    *ROW_FIELDS,
    Field("layer_objective", "float64", Per.latent, about="the last norm has the scale that it gives this layer"),
    Field("scale_held", "float64", Per.latent, about="the objective with the scale of the actual forward"),
    Field("rank", "int64", Per.latent, about="of the first token of the correct answer, 1 being the highest logit"),
    Field(
        "layer_logits",
        "float64",
        Per.latent,
        ("answer",),
        about="of each answer; of several tokens their log-probabilities, NaN where a row has fewer answers",
    ),
)


class LogitLens(Results):
    """The residual stream at the answer position, read layer by layer, in a store.

    ``to_pandas`` has a line for each row and layer: ``objective``, with the scale that the last norm gives the layer
    itself; ``scale_held``, with the scale of the actual forward; ``rank`` of the correct answer; and ``logits`` of all
    answers. ``units`` is the hook point: ``layers.0.resid_pre`` has the embedding.
    """

    methods = ("lens",)
    columns = {  # noqa: RUF012
        "objective": "layer_objective",
        "scale_held": "scale_held",
        "rank": "rank",
        "logits": "layer_logits",
    }

    def layers(self) -> pd.DataFrame:
        """A line for each layer, from the embedding to the last block, over all rows.

        Returns:
            ``units``, the hook point; ``objective`` and ``scale_held``, means; ``median_rank``; ``share_correct``, of
            rows in which the correct answer has the highest logit among the answers.
        """
        told = self.to_pandas()
        correct = self.rows().set_index("row").correct
        best = np.array([np.nanargmax(logits) for logits in told.logits])
        told["right"] = best == correct.loc[told.row].to_numpy()
        order = [item["name"] for item in self.question["units"]]
        found = told.groupby("units").agg(
            objective=("objective", "mean"),
            scale_held=("scale_held", "mean"),
            median_rank=("rank", "median"),
            share_correct=("right", "mean"),
        )
        return found.loc[order].reset_index()

    def _printed(self) -> pd.DataFrame:
        return self.layers()

    def plot(self) -> go.Figure:
        """Lines of the mean objective over layers, with each of the two scales."""
        layers, told = self.layers(), self.question
        figure = go.Figure()
        for name, about in (("objective", "scale of the layer"), ("scale_held", "scale of the forward")):
            figure.add_scatter(x=layers.units, y=layers[name], name=about, customdata=layers.median_rank)
        figure.update_traces(hovertemplate="%{x}<br>%{y:.4g}<br>median rank %{customdata:.4g}<extra></extra>")
        figure.update_layout(
            title=f"{told['objective']} by layer, {told['rows']} rows",
            yaxis_title=told["unit"] or "objective",
            template="plotly_white",
        )
        return figure

    def __repr__(self) -> str:
        told = self.question
        return f"Logit lens of {told['objective']} over {told['rows']} rows, {len(told['units'])} layers"
