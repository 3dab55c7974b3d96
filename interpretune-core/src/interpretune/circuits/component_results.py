"""Effects of edges between components, and of components, read: as tables."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from interpretune.circuits.components import ComponentGraph
from interpretune.errors import ConfigurationError
from interpretune.questions.result import ROW_FIELDS, Effects, Results
from interpretune.replay.effect_noise import noise_of, warn_of_noise
from interpretune.store.fields import Field, Per

if TYPE_CHECKING:
    from numpy.typing import NDArray

EDGE_FIELDS = (
    *ROW_FIELDS,
    Field("approximate", "float64", ragged=True, about="effects of all edges by one method after the other"),
    Field("exact", "float64", ragged=True, about="effects of the patched edges, objective clean minus patched"),
    Field("exact_edges", "int64", ragged=True, about="which edges are patched, counted as the graph lists them"),
    Field("effect_noise", "float64", Per.batch, about="what rounding alone does to an effect; 0 where not measured"),
)


class PatchedNodes(Effects):
    """Effects of setting components to what they are in the corrupted prompts at all tokens together, in a store.

    Tables are those of ``Effects``; the position is that of the last token, and stands for the row.
    """

    methods: ClassVar[tuple[str, ...]] = ("node_patching",)

    @property
    def _kind(self) -> str:
        return "set to corrupted at all tokens together"


class ComponentEdges(Results):
    """Effects of edges between components, in a store.

    ``to_pandas`` has a line for each row and edge: ``source``, ``target``, a column for each approximation, and
    ``exact``, NaN where the edge was not patched. Without approximations, only patched edges have lines.
    """

    methods: ClassVar[tuple[str, ...]] = ("component_edges", "path_patching")

    @cached_property
    def graph(self) -> ComponentGraph:
        """The nodes of the model."""
        return ComponentGraph.named(self.question["graph"])

    @property
    def noise(self) -> float | None:
        """What rounding alone does to an effect on a row, as it was measured; None above 16 bits."""
        return noise_of(batch["effect_noise"] for batch in self.store.batches(["effect_noise"]))

    def warn_of_noise(self) -> None:
        """As ``Effects.warn_of_noise``, by exact effects where edges were patched."""
        if self.noise is not None:
            numbers = self._values[2]
            known = numbers["exact"] if np.isfinite(numbers["exact"]).any() else next(iter(numbers.values()))
            warn_of_noise(self.noise, float(np.nanmax(np.abs(known))), self.question["unit"])

    @cached_property
    def _values(self) -> tuple[NDArray[np.int64], list[tuple[int, int]], dict[str, NDArray[np.float64]]]:
        """Rows, edges, and numbers ``[n_rows, n_edges]`` by column."""
        names, edges = [*self.question["methods"]], self.graph.edges
        names_read = ["row", "approximate", "exact", "exact_edges"]
        batches = list(self.store.batches(names_read))
        rows, approximate, exact, which = (
            _joined(batches, name) for name in ("row", "approximate", "exact", "exact_edges")
        )
        order = torch.argsort(rows)
        patched = which[0].tolist() if len(which) else []
        if names:
            of_methods = approximate[order].unflatten(1, (len(names), -1))
            values = {name: of_methods[:, i].numpy() for i, name in enumerate(names)}
            values["exact"] = np.full(of_methods[:, 0].shape, np.nan)
            values["exact"][:, patched] = exact[order].numpy()
            return rows[order].numpy(), edges, values
        return rows[order].numpy(), [edges[i] for i in patched], {"exact": exact[order].numpy()}

    def _named(self, edges: list[tuple[int, int]], repeats: int = 1) -> dict[str, pd.Categorical]:
        found = {}
        for name, nodes, column in (("source", self.graph.sources, 0), ("target", self.graph.targets, 1)):
            codes = np.tile(np.array([edge[column] for edge in edges], dtype=np.int64), repeats)
            found[name] = pd.Categorical.from_codes(codes, [node.name for node in nodes])
        return found

    def to_pandas(self) -> pd.DataFrame:
        """A line for each row and edge: ``row, source, target``, and its effect by each method."""
        rows, edges, values = self._values
        numbers = {name: found.flatten() for name, found in values.items()}
        return pd.DataFrame({"row": rows.repeat(len(edges)), **self._named(edges, len(rows)), **numbers})

    def to_arrow(self) -> pa.Table:
        """The same as an Arrow table."""
        return pa.Table.from_pandas(self.to_pandas(), preserve_index=False)

    def top(self, n: int = 10, by: str | None = None) -> pd.DataFrame:
        """The edges with the largest effects, by the mean size of their effects over all rows.

        Args:
            n: How many.
            by: The column that ranks; None: the last approximation, or ``exact`` where there is none.

        Returns:
            ``source``, ``target``; ``mean_size``, the mean of effects of that column without their sign; and the mean
            of each column.

        Raises:
            ConfigurationError: There is no such column.
        """
        _, edges, values = self._values
        ranking = by or [*self.question["methods"], "exact"][max(0, len(self.question["methods"]) - 1)]
        if ranking not in values:
            raise ConfigurationError(f"There is no column {ranking!r} of effects; there are {', '.join(values)}.")
        sizes = np.abs(values[ranking]).mean(0)
        order = np.argsort(-np.nan_to_num(sizes, nan=-1.0), kind="stable")[:n]
        shown = {**self._named([edges[i] for i in order]), "mean_size": sizes[order]}
        means = {name: found.mean(0)[order] for name, found in values.items() if not np.isnan(found).all()}
        return pd.DataFrame({**shown, **means})

    def nodes(self) -> pd.DataFrame:
        """Approximate effects of the nodes: for each row and node, by each method, the sum over the edges out of it.

        Returns:
            ``row``; ``node``, its name; ``units`` and ``unit``, as tables of effects name it; and a column for each
            approximation. By ``eap`` it is the difference of the node's activations times the gradient there.
        """
        rows, edges, values = self._values
        nodes, codes = self.graph.sources, np.array([edge[0] for edge in edges], dtype=np.int64)
        found: dict[str, Any] = {
            "row": rows.repeat(len(nodes)),
            "node": np.tile([node.name for node in nodes], len(rows)),
            "units": np.tile([node.hook_point for node in nodes], len(rows)),
            "unit": np.tile([node.head or 0 for node in nodes], len(rows)),
        }
        for name in self.question["methods"]:
            sums = np.zeros((len(nodes), len(rows)))
            np.add.at(sums, codes, values[name].T)
            found[name] = sums.T.flatten()
        return pd.DataFrame(found)

    def _printed(self) -> pd.DataFrame:
        return self.top()

    def __repr__(self) -> str:
        told, (_, edges, values) = self.question, self._values
        patched = int((~np.isnan(values["exact"])).any(0).sum())
        by = ", ".join(told["methods"])
        return (
            f"Effects on {told['objective']} over {told['rows']} rows of {len(edges)} edges between components"
            f"{f' by {by}' if by else ''}, {patched} patched exactly"
        )


def _joined(batches: list[Any], name: str) -> Tensor:
    parts = [batch[name] for batch in batches]
    if name == "row":
        return torch.cat(parts)
    return torch.stack([value for part in parts for value in part]) if parts else torch.zeros(0, 0)
