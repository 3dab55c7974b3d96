"""Attribution graphs of rows of prompts, one after the other, in a store: the edges that pruning keeps, and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pandas as pd
import pyarrow as pa
import torch
from attrs import field, frozen

from interpretune.circuits.attributing import attribution_graph
from interpretune.errors import AnalysisError
from interpretune.latents.identity import IdentityDictionary
from interpretune.operations.objectives import objective_of
from interpretune.questions.encoding import EncodedRow
from interpretune.questions.model_and_rows import ModelAndRows
from interpretune.questions.question import Question, RowsAsked
from interpretune.questions.result import ROW_FIELDS, Results
from interpretune.questions.units import unit_sets
from interpretune.store.fields import TORCH_DTYPES, Field

TEXTS = {"source_name": "source", "target_name": "target"}
ENDS = ("source_position", "target_position")
NUMBERS = ("weight", "linear_total", "exact")
GRAPH_FIELDS = (
    *ROW_FIELDS,
    *(Field(name, "string", ragged=True, about=f"{told} of each edge, by name") for name, told in TEXTS.items()),
    *(Field(name, "int64", ragged=True, about="its token") for name in ENDS),
    Field("weight", "float64", ragged=True, about="what the source contributes straight to the target"),
    Field("linear_total", "float64", ragged=True, about="what the graph says that the target loses without the source"),
    Field("exact", "float64", ragged=True, about="what it loses in the model; NaN where unknown"),
    Field("replacement", "float64", about="of the unpruned graph, as circuit-tracer measures it"),
    Field("completeness", "float64", about="likewise"),
    Field("active", "int64", about="active latents"),
    Field("left_out", "int64", about="latents that lead to the logits and are no nodes"),
)


class AttributionGraphs(Results):
    """Edges of attribution graphs of several prompts, pruned, with exact effects beside them, in a store.

    ``to_pandas`` has a line for each edge: ``row``; ``source`` and ``target``, their names, and the tokens at which
    they are; ``weight``, ``linear_total`` and ``exact``, as in ``AttributionGraph.to_pandas``.
    """

    methods: ClassVar[tuple[str, ...]] = ("attribution_graph",)
    of_rows = ("replacement", "completeness", "active", "left_out")

    def to_pandas(self) -> pd.DataFrame:
        """A line for each edge."""
        names = ["row", *TEXTS, *ENDS, *NUMBERS]
        table = pa.Table.from_batches(list(self.store.record_batches(names))).sort_by("example").select(names)
        frame = table.to_pandas().rename(columns=TEXTS)
        return (
            frame.explode([*frame.columns[1:]], ignore_index=True)
            .dropna(subset="weight")
            .astype({**dict.fromkeys(ENDS, "int64"), **dict.fromkeys(NUMBERS, "float64")})
        )

    def to_arrow(self) -> pa.Table:
        """The same as an Arrow table."""
        return pa.Table.from_pandas(self.to_pandas(), preserve_index=False)

    def top(self, n: int = 10) -> pd.DataFrame:
        """The edges with the largest exact effects, by the mean size over rows, those at all tokens together.

        Args:
            n: How many.

        Returns:
            ``source`` and ``target``; means over rows of ``weight``, ``linear_total`` and ``exact``, 0 where there is
            no such edge, NaN where no row knows it; and ``mean_size`` of ``exact``. What is unknown comes last.
        """
        frame = self.to_pandas()
        frame["mean_size"] = frame.exact.abs()
        sums = frame.groupby(["source", "target"])[[*NUMBERS, "mean_size"]].sum(min_count=1) / self.question["rows"]
        return sums.sort_values("mean_size", ascending=False, kind="stable").head(n).reset_index()

    def _printed(self) -> pd.DataFrame:
        return self.top()

    def __repr__(self) -> str:
        told, frame, rows = self.question, self.to_pandas(), self.rows()
        return (
            f"Attribution graphs of {told['rows']} prompts with {len(told['units'])} transcoders, pruned to "
            f"{len(frame)} edges; replacement scores {rows.replacement.min():.2f} to {rows.replacement.max():.2f}"
        )


@frozen(eq=False, kw_only=True)
class GraphQuestion(Question):
    """Attribution graphs of all rows.

    Attributes:
        prune: Shares of the influence of nodes and of edges that are kept.
        max_nodes: Most latents of a graph.
    """

    fields: ClassVar = GRAPH_FIELDS
    result: ClassVar = AttributionGraphs
    method: Any = field(default="attribution_graph", init=False)
    value: Any = field(default="zero", init=False)
    mean_over: None = field(default=None, init=False)
    positions: str = field(default="all", init=False)
    budget: None = field(default=None, init=False)
    prune: tuple[float, float]
    max_nodes: int

    def computed(self, batch: RowsAsked) -> dict[str, Any]:
        """What is stored of a batch."""
        run = self._run(batch, [])
        transcoders = [item.dictionary for item in self.sets]
        found: dict[str, list[Any]] = {item.name: [] for item in GRAPH_FIELDS[len(ROW_FIELDS) :]}
        for row in batch.rows:
            graph = attribution_graph(
                self.backend, self.tokenizer, row.row, transcoders=transcoders, max_nodes=self.max_nodes
            )
            small = graph.prune(*self.prune).exact_effects()
            edges, left_out = small.to_pandas(), graph.left_out
            told: Mapping[str, Any] = {**graph.scores, "active": left_out.active, "left_out": left_out.latents}
            for name, values in found.items():
                values.append(edges[name].tolist() if name in edges else told[name])
        columns: dict[str, Any] = dict(found)
        for name in (*ENDS, *NUMBERS):
            kind = torch.long if name in ENDS else torch.float64
            columns[name] = [torch.tensor(values, dtype=kind) for values in found[name]]
        for item in GRAPH_FIELDS[-len(AttributionGraphs.of_rows) :]:
            columns[item.name] = torch.tensor(found[item.name], dtype=TORCH_DTYPES[item.dtype])
        return {**self.told_of(batch, run), **columns}

    def _tokens(self, row: EncodedRow, number: int) -> range:
        """One point for each row, its last token: a graph is of the row."""
        return range(len(row.tokens) - 1, len(row.tokens))

    def about(self) -> dict[str, Any]:
        """What results say of the question."""
        about = super().about()
        about["question"] |= {"prune": list(self.prune), "max_nodes": self.max_nodes}
        return about


def graph_question(
    asked: ModelAndRows, units: Any, prune: Sequence[float] = (0.8, 0.98), max_nodes: int = 2000
) -> GraphQuestion:
    """Attribution graphs of rows, with their answers as logits, not made yet.

    Args:
        asked: The model and the rows.
        units: Transcoders, as ``effects`` takes them.
        prune: Shares of the influence of nodes and of edges that are kept (``AttributionGraph.prune``).
        max_nodes: Most latents of a graph.

    Raises:
        AnalysisError: Units are no latents, or some latents of a dictionary alone.
    """
    sets = unit_sets(units, asked.backend)
    for item in sets:
        if isinstance(item.dictionary, IdentityDictionary) or len(item.ids) < item.size:
            raise AnalysisError(
                f"Attribution graphs are made with whole transcoders; units has {len(item.ids)} of {item.size} "
                f"{item.kind}s of {item.name}. Name latent models alone: units: {{latents: all}}."
            )
    return GraphQuestion(
        **asked.parts,
        sets=sets,
        objective=objective_of("logit_diff"),
        row_budget=None,
        prune=(float(prune[0]), float(prune[1])),
        max_nodes=max_nodes,
    )
