"""Questions about components on clean and corrupted prompts, and how they are answered into a store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from attrs import field, frozen
from torch import Tensor

from interpretune.circuits.component_batch import ComponentBatch, PatchedBatch
from interpretune.circuits.component_results import EDGE_FIELDS, ComponentEdges, PatchedNodes
from interpretune.circuits.components import WrittenStream
from interpretune.questions.encoding import EncodedRow
from interpretune.questions.question import Question, RowsAsked
from interpretune.questions.result import FIELDS
from interpretune.questions.unit_effects import UnitEffects


@frozen(eq=False, kw_only=True)
class _OfCorrupted(Question):
    """A question in which activations come from the corrupted prompts, at all tokens together."""

    value: Any = field(default="corrupted", init=False)
    mean_over: None = field(default=None, init=False)
    positions: str = field(default="all", init=False)
    budget: None = field(default=None, init=False)

    def _tokens(self, row: EncodedRow, number: int) -> range:
        """One point for each row, its last token: what is found is of the row."""
        return range(len(row.tokens) - 1, len(row.tokens))


@frozen(eq=False, kw_only=True)
class PatchingQuestion(_OfCorrupted):
    """What ``node_patching`` asks."""

    fields: ClassVar = FIELDS
    result: ClassVar = PatchedNodes
    method: Any = field(default="node_patching", init=False)

    @torch.no_grad()
    def computed(self, batch: RowsAsked) -> dict[str, Any]:
        """What is stored of a batch."""
        names = [item.dictionary.hook_point for item in self.sets]
        patched = PatchedBatch(self, batch, names)
        run, parts = patched.run, {}
        for item in self.sets:
            effects = (run.clean - patched.set_to_corrupted(item)).T.double()
            moved = patched.moves(item)
            nothing = torch.zeros_like(moved)
            parts[item.name] = UnitEffects(effects, patched.sizes(item), moved, nothing, nothing[:, 0].double())
        return self.stored_of(batch, [run], parts)


@frozen(eq=False, kw_only=True)
class EdgeQuestion(_OfCorrupted):
    """What ``component_edges`` and ``path_patching`` ask.

    Attributes:
        stream: The nodes of the model, and how they write.
        methods: Approximations, ``eap`` and ``eap_ig``.
        exact: How many edges are patched: those with the largest mean size by the last method; or which.
    """

    fields: ClassVar = EDGE_FIELDS
    result: ClassVar = ComponentEdges
    method: Any = field(default="component_edges", init=False)
    stream: WrittenStream
    methods: Sequence[str]
    exact: int | Sequence[tuple[int, int]]

    @torch.no_grad()
    def computed(self, batch: RowsAsked) -> dict[str, Any]:
        """What is stored of a batch."""
        run = ComponentBatch(self, batch, self.stream)
        edges, n_rows = self._patched, len(batch.rows)
        exact = (run.run.clean - run.patched(edges)).T.double() if edges else torch.zeros(n_rows, 0).double()
        found = self._approximate[batch.first] if self._ranks else self._attributed(run)
        where = torch.tensor([self._numbers[edge] for edge in edges], dtype=torch.long)
        return {
            **self.told_of(batch, run.run),
            "approximate": list(found.flatten(1)),
            "exact": list(exact),
            "exact_edges": [where] * n_rows,
            "effect_noise": self.noise_in(batch, run.run),
        }

    def _attributed(self, run: ComponentBatch) -> Tensor:
        """Of all edges by each method, ``[batch, n_methods, n_edges]``."""
        found = [run.attributed(None if method == "eap" else self.steps) for method in self.methods]
        return torch.stack(found, dim=1) if found else torch.zeros(len(run.run.clean), 0, 0).double()

    @property
    def _ranks(self) -> bool:
        """Whether approximations say which edges are patched."""
        return isinstance(self.exact, int) and self.exact > 0

    @cached_property
    def _numbers(self) -> dict[tuple[int, int], int]:
        return {edge: number for number, edge in enumerate(self.stream.graph.edges)}

    @cached_property
    def _approximate(self) -> dict[int, Tensor]:
        """Approximations of all batches, by their first row."""
        return {
            batch.first: self._attributed(ComponentBatch(self, batch, self.stream)) for batch in self.batches(self.rows)
        }

    @cached_property
    def _patched(self) -> list[tuple[int, int]]:
        """The edges that are patched."""
        if not isinstance(self.exact, int):
            return list(self.exact)
        if not self.exact:
            return []
        sizes = torch.cat(list(self._approximate.values()))[:, -1].abs().mean(0)
        return [self.stream.graph.edges[i] for i in sizes.topk(min(self.exact, len(sizes))).indices.tolist()]

    def about(self) -> dict[str, Any]:
        """See ``Question.about``."""
        told = super().about()
        told["question"] |= {
            "graph": self.stream.graph.told,
            "methods": list(self.methods),
            "exact": self.exact if isinstance(self.exact, int) else [list(edge) for edge in self.exact],
            **({"steps": self.steps} if "eap_ig" in self.methods else {}),
        }
        return told
