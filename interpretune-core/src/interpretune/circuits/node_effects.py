"""Effects of nodes on nodes, read: a node is a unit at a token of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from interpretune.errors import StoreError
from interpretune.questions.result import FIELDS, Effects, Results, unit_name
from interpretune.store.fields import Field
from interpretune.store.store import AnalysisStore

if TYPE_CHECKING:
    import pandas as pd

EFFECT_FIELDS = (
    Field("from_units", "int64", ragged=True, about="unit set of each unit that is changed, by its index"),
    Field("from_unit", "int64", ragged=True, about="its id"),
    Field("on_units", "int64", ragged=True, about="unit set of the unit that the effect is on, by its index"),
    Field("on_unit", "int64", ragged=True, about="its id"),
    Field("on_position", "int64", ragged=True, about="token of the prompt at which it is"),
    Field("on_effect", "float64", ragged=True, about="activation, clean minus with the unit changed"),
    Field("on_gradient", "float64", ragged=True, about="the same by the gradient; NaN where there is none"),
    Field("dropped", "int64", shape=("target set",), about="effects that are not 0 and not above the tolerance"),
    Field("largest_dropped", "float64", shape=("target set",), about="size of the largest of them"),
)


class NodeEffects(Results):
    """Effects of units on the units above them, in a store; beside these, effects on the objective.

    The effect on a latent or neuron is its activation in the clean run minus that with the source changed; on a head or
    vector, which has several coordinates, the norm of that difference. Effects of at most ``tolerance`` are left out,
    and ``dropped`` counts them.
    """

    methods = ("exact",)

    def __init__(self, store: AnalysisStore) -> None:
        """Read a store.

        Raises:
            StoreError: It holds something else.
        """
        super().__init__(store)
        if "on" not in self.question:
            raise StoreError(f"{store} holds no NodeEffects: its question asks of no effects on units.")

    @property
    def on_objective(self) -> Effects:
        """The effects of the same units on the objective, found by the same changes."""
        return Effects(self.store)

    @property
    def tolerance(self) -> float:
        """Effects of this size or less are left out, in units of the activation."""
        return float(self.question["tolerance"])

    def dropped(self) -> pd.DataFrame:
        """A line for each target set: ``units``, how many effects were ``dropped``, and the ``largest`` of them."""
        import pandas as pd

        counts, sizes = (
            np.concatenate([batch[name].numpy() for batch in self.store.batches([name])])
            for name in ("dropped", "largest_dropped")
        )
        names = [item["name"] for item in self.question["on"]]
        return pd.DataFrame({"units": names, "dropped": counts.sum(0), "largest": sizes.max(0)})

    def to_arrow(self) -> pa.Table:
        """A line for each effect that is above the tolerance.

        ``row``; ``position``, ``units`` and ``unit`` of the source; ``target_position``, ``target_units`` and
        ``target_unit``; ``effect``; and ``gradient``, if it was asked for: the effect that the gradient gives, NaN
        between tokens and on units of several coordinates.
        """
        lists = [field.name for field in EFFECT_FIELDS if field.ragged]
        table = pa.Table.from_batches(list(self.store.record_batches(["row", "position", *lists])))
        table = table.sort_by("example").combine_chunks()
        owners = pc.list_parent_indices(table["on_unit"])
        flat = {name: pc.list_flatten(table[name]) for name in lists}
        told = self.question
        columns = {
            "row": table["row"].take(owners),
            "position": table["position"].take(owners),
            "units": _named(flat["from_units"], told["units"]),
            "unit": flat["from_unit"],
            "target_position": flat["on_position"],
            "target_units": _named(flat["on_units"], told["on"]),
            "target_unit": flat["on_unit"],
            "effect": flat["on_effect"],
        }
        return pa.table({**columns, "gradient": flat["on_gradient"]} if told["gradient"] else columns)

    def top(self, n: int = 10) -> pd.DataFrame:
        """The pairs of units with the largest effects, by the mean size over all rows and tokens that are changed.

        Args:
            n: How many.

        Returns:
            ``source`` and ``target`` in words; ``mean_effect``; ``mean_size``, the mean of effects without their sign;
            ``largest``, the effect of the largest size; ``nodes``, how many effects between tokens that is of. What is
            below the tolerance counts as 0, and effects on several tokens are added up.
        """
        keys = ["units", "unit", "target_units", "target_unit"]
        grouped = self.to_pandas().groupby(keys, observed=True).effect
        n_points = self.store.n_examples
        found = grouped.agg(
            mean_effect=lambda effect: effect.sum() / n_points,
            mean_size=lambda effect: effect.abs().sum() / n_points,
            largest=lambda effect: effect.loc[effect.abs().idxmax()],
            nodes="size",
        ).reset_index()
        found = found.sort_values("mean_size", ascending=False, kind="stable").head(n).reset_index(drop=True)
        kinds = {item["name"]: item["kind"] for item in (*self.question["units"], *self.question["on"])}
        for place, name in enumerate(("source", "target")):
            pairs = zip(found[keys[2 * place]], found[keys[2 * place + 1]], strict=True)
            found.insert(place, name, [unit_name(kinds[units], units, unit) for units, unit in pairs])
        return found

    def _printed(self) -> pd.DataFrame:
        return self.top().drop(columns=["units", "unit", "target_units", "target_unit"])

    def __repr__(self) -> str:
        told, dropped = self.question, self.dropped()
        sources, targets = (_shown([item["name"] for item in told[key]]) for key in ("units", "on"))
        kind = "Direct" if told["direct"] else "Total"
        below = f"; {dropped.dropped.sum()} of at most {self.tolerance:g} are left out" if dropped.dropped.any() else ""
        largest = f", the largest {dropped.largest.max():.3g}" if below else ""
        return (
            f"{kind} effects of {sources}, set to {told['value']}, on {targets} over {told['rows']} rows"
            f"{self.on_objective.left_out}{below}{largest}"
        )


def _shown(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _named(codes: pa.ChunkedArray, sets: list[dict[str, str]]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array([item["name"] for item in sets], pa.string())]).take(codes)


NODE_FIELDS = (*FIELDS, *EFFECT_FIELDS)
"""What is stored of a question of effects on units."""
