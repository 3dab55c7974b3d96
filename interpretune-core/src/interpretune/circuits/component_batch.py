"""A batch of rows and its corrupted prompts: effects of edges between components, approximate and exact."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from attrs import evolve
from torch import Tensor

from interpretune.activations.edits import Edit
from interpretune.activations.finite import check_rows, rows_named
from interpretune.activations.hook_names import (
    ATTN_OUT,
    ATTN_Z,
    HEAD_INPUTS,
    LOGITS,
    MLP_IN,
    MLP_OUT,
    RESID_MID,
    RESID_POST,
    RESID_PRE,
    in_layer,
    split_layer,
)
from interpretune.activations.hooked_model import AllCaptured
from interpretune.activations.inputs import ModelInputs, Points
from interpretune.circuits.components import WrittenStream
from interpretune.errors import AnalysisError
from interpretune.questions.measured_batch import MeasuredBatch
from interpretune.questions.sequences import Sequences
from interpretune.questions.tokens_of_rows import measured_tokens
from interpretune.questions.units import UnitSet
from interpretune.replay.budgets import naive_budget
from interpretune.replay.gradients import midpoints
from interpretune.system.model_lock import model_lock
from interpretune.system.torch_state import frozen_parameters

if TYPE_CHECKING:
    from interpretune.questions.question import Question, RowsAsked


class PatchedBatch:
    """A batch of rows in which activations are set to what they are in the corrupted prompts, at all tokens together.

    Where an answer has several tokens, those before its last follow the corrupted prompt as they follow the clean one.

    Attributes:
        run: The batch with nothing changed.
        inputs: What is run for its rows, ``[s, pos]``.
    """

    def __init__(
        self, question: Question, batch: RowsAsked, names: Sequence[str], of_clean: Sequence[str] = ()
    ) -> None:
        """Run the batch and its corrupted prompts.

        Args:
            question: Whose batch it is.
            batch: The rows.
            names: Hook points whose activations are kept, besides the residual stream before and after each block.
            of_clean: Further ones that are kept of the clean run alone.
        """
        self._backend = backend = question.backend
        self.run = MeasuredBatch(
            backend, [], batch.rows, batch.sequences, batch.points, question.objective, question.row_budget
        )
        self.inputs, self._points = batch.sequences.inputs, batch.sequences.wanted_points
        self._rows = batch.sequences.rows
        self._budget = question.row_budget or naive_budget(self.run.prefill)
        self._real = self.inputs.attention_mask.bool()
        last = backend.n_layers - 1
        stream = [*(in_layer(layer, RESID_PRE) for layer in range(last + 1)), in_layer(last, RESID_POST)]
        self._clean = backend.capture(self.inputs, list(dict.fromkeys([*stream, *names, *of_clean])))
        self._corrupted = backend.capture(corrupted_inputs(question, batch), list(dict.fromkeys([stream[0], *names])))

    def set_to_corrupted(self, item: UnitSet) -> Tensor:
        """The objective with each unit of a set in turn as in the corrupted prompts, ``[n_units, batch]``."""
        name = item.dictionary.hook_point
        layer = (split_layer(name) or (0, ""))[0]
        start = self._stream_before(layer)
        found = []
        for chunk in torch.arange(len(item.ids)).split(self._copies):
            members = item.members[chunk].to(self._real.device)

            def put(activations: Tensor, members: Tensor = members) -> Tensor:
                changed = activations.flatten(2).clone().unflatten(0, (len(members), -1))
                for copy, mine in zip(changed, members, strict=True):
                    copy[..., mine] = self._patched(name)[..., mine]
                return changed.flatten(0, 1).reshape(activations.shape)

            found.append(self._measured(layer, start.repeat(len(chunk), 1, 1), {name: put}, len(chunk)))
        return torch.cat(found)

    def sizes(self, item: UnitSet) -> Tensor:
        """Norm of the activations of each unit over all tokens of a row, ``[batch, n_units]``."""
        values = self._clean[item.dictionary.hook_point].flatten(2).double() * self._real.unsqueeze(-1)
        squares = values[..., item.members.to(values.device)].square().sum(dim=(1, -1))
        first = torch.searchsorted(self._rows, torch.arange(len(self.run.clean), device=self._rows.device))
        return squares[first].sqrt()

    def moves(self, item: UnitSet) -> Tensor:
        """Whether a unit has another activation in the corrupted prompt at some token, ``[batch, n_units]``."""
        name = item.dictionary.hook_point
        differs = self._clean[name].flatten(2) != self._patched(name)
        return self._of_rows(differs[..., item.members.to(differs.device)].any(-1).any(1).double()) > 0

    def _patched(self, name: str) -> Tensor:
        """Activations of the corrupted prompts at a hook point; of padding as in the clean run, ``[s, pos, d]``."""
        clean, corrupted = (part[name].flatten(2) for part in (self._clean, self._corrupted))
        return torch.where(self._real.unsqueeze(-1), corrupted, clean)

    # ------------------------------------------------------------------------------------------------------- forwards

    def _stream_before(self, layer: int) -> Tensor:
        """The clean residual stream before a block, ``[s, pos, d_model]``; after the last for the number of blocks."""
        n_layers = self._backend.n_layers
        return self._clean[in_layer(layer, RESID_PRE) if layer < n_layers else in_layer(n_layers - 1, RESID_POST)]

    @property
    def _copies(self) -> int:
        """How many copies of the batch run at a time."""
        return max(1, self._budget // len(self.inputs))

    def _copied(self, copies: int) -> tuple[Tensor, ModelInputs, Points]:
        each = torch.arange(len(self.inputs), device=self._real.device)
        shifts = torch.arange(copies, device=each.device).repeat_interleave(len(self._points)) * len(each)
        points = Points(self._points.examples.repeat(copies) + shifts, self._points.positions.repeat(copies))
        return each.repeat(copies), self.inputs.select(each.repeat(copies)), points

    def _measured(self, start: int, residual: Tensor, edits: Mapping[str, Edit], copies: int) -> Tensor:
        """The objective of copies of the batch, run from a block up with edits, ``[copies, batch]``."""
        examples, inputs, points = self._copied(copies)
        with rows_named(examples):
            logits = self._backend.run_from_block(inputs, start, residual, edits, points)
        return torch.stack([self.run.measured(part) for part in logits.split(len(self._points))])

    def _of_rows(self, values: Tensor) -> Tensor:
        """Sums over the sequences of each row, ``[s, ...]`` to ``[batch, ...]``."""
        return values.new_zeros(len(self.run.clean), *values.shape[1:]).index_add(0, self._rows, values)


class ComponentBatch(PatchedBatch):
    """A batch in which edges between components carry what their sources write in the corrupted prompts."""

    def __init__(self, question: Question, batch: RowsAsked, stream: WrittenStream) -> None:
        """Run the batch and its corrupted prompts."""
        self._stream, self._graph = stream, stream.graph
        parts = [(layer, part) for layer in range(len(stream.graph.parallel)) for part in (ATTN_Z, MLP_OUT)]
        middle = [in_layer(i, RESID_MID) for i, parallel in enumerate(stream.graph.parallel) if not parallel]
        super().__init__(question, batch, [in_layer(*item) for item in parts], middle)

    # ------------------------------------------------------------------------------------------------- path patching

    def patched(self, edges: Sequence[tuple[int, int]]) -> Tensor:
        """The objective with each edge in turn carrying the corrupted value, ``[n_edges, batch]``.

        The target is computed anew from the residual stream of the clean run in which only what the source wrote is
        that of the corrupted run; what runs after the target is computed anew too, and reads the clean source.
        """
        found = self.run.clean.new_zeros(len(edges), len(self.run.clean))
        together: dict[tuple[int, str], list[int]] = {}
        for number, (_, target) in enumerate(edges):
            point = self._graph.targets[target].hook_point
            layer, part = split_layer(point) or (self._backend.n_layers, LOGITS)
            together.setdefault((layer, "heads" if part in HEAD_INPUTS else part), []).append(number)
        for (layer, part), numbers in together.items():
            for first in range(0, len(numbers), self._copies):
                mine = numbers[first : first + self._copies]
                found[mine] = self._patched_at(layer, part, [edges[number] for number in mine])
        return found

    def _patched_at(self, layer: int, part: str, edges: Sequence[tuple[int, int]]) -> Tensor:
        sources = list(dict.fromkeys(source for source, _ in edges))
        changes = {source: self._change(source) for source in sources}
        before = self._stream_before(layer)
        if part == LOGITS:
            return self._measured(layer, torch.cat([before - changes[source] for source, _ in edges]), {}, len(edges))
        if part == MLP_IN:
            read = self._read_by_mlp(layer, torch.cat([changes[source] for source in sources]))
        else:
            read = self._read_by_heads(layer, torch.cat([before - changes[source] for source in sources]))
        parts = {name: dict(zip(sources, seen.split(len(self.inputs)), strict=True)) for name, seen in read.items()}

        def put(name: str) -> Edit:
            def apply(activations: Tensor) -> Tensor:
                changed = activations.clone().unflatten(0, (len(edges), -1))
                for copy, (source, number) in zip(changed, edges, strict=True):
                    target = self._graph.targets[number]
                    if target.hook_point == name:
                        whole = ... if target.head is None else (slice(None), slice(None), target.head)
                        copy[whole] = parts[name][source][whole]
                return changed.flatten(0, 1)

            return apply

        names = {self._graph.targets[target].hook_point for _, target in edges}
        return self._measured(layer, before.repeat(len(edges), 1, 1), {name: put(name) for name in names}, len(edges))

    def _read_by_heads(self, layer: int, residual: Tensor) -> dict[str, Tensor]:
        return self._noted(layer, residual, {}, [in_layer(layer, part) for part in HEAD_INPUTS])

    def _read_by_mlp(self, layer: int, changes: Tensor) -> dict[str, Tensor]:
        copies, name, middle = len(changes) // len(self.inputs), in_layer(layer, MLP_IN), in_layer(layer, RESID_MID)
        before = self._stream_before(layer).repeat(copies, 1, 1)
        if self._graph.parallel[layer]:
            return self._noted(layer, before - changes, {}, [name])
        changed = self._clean[middle].repeat(copies, 1, 1) - changes
        return self._noted(layer, before, {middle: lambda _: changed}, [name])

    def _noted(
        self, start: int, residual: Tensor, edits: Mapping[str, Edit], names: Sequence[str]
    ) -> dict[str, Tensor]:
        """Activations of copies of the batch at hook points, from a run that ends there."""
        seen: dict[str, Tensor] = {}

        def note(name: str) -> Edit:
            def keep(activations: Tensor) -> Tensor:
                seen[name] = activations.clone()
                if len(seen) == len(names):
                    raise AllCaptured
                return activations

            return keep

        _, inputs, points = self._copied(len(residual) // len(self.inputs))
        with contextlib.suppress(AllCaptured):
            told = {**edits, **{name: note(name) for name in names}}
            self._backend.run_from_block(inputs, start, residual, told, points)
        return seen

    def _change(self, source: int) -> Tensor:
        """What a source adds to the stream in the clean run minus the corrupted one, ``[s, pos, d_model]``."""
        node = self._graph.sources[source]
        layer, part = split_layer(node.hook_point) or (0, "")
        if node.head is None:
            factor = 1.0 if part == RESID_PRE else self._stream.factors[node.hook_point]
            return factor * (self._clean[node.hook_point] - self._patched(node.hook_point))
        clean = self._clean[node.hook_point].flatten(2)
        changed = clean.unflatten(-1, (self._graph.n_heads, -1)).clone()
        corrupted = self._patched(node.hook_point).unflatten(-1, (self._graph.n_heads, -1))
        changed[..., node.head, :] = corrupted[..., node.head, :]
        return self._stream.by_attention(layer, clean) - self._stream.by_attention(layer, changed.flatten(-2))

    # ---------------------------------------------------------------------------------------------------- attribution

    def attributed(self, steps: int | None) -> Tensor:
        """Approximate effects of all edges, ``[batch, n_edges]``.

        Args:
            steps: The gradient is the mean at the middles of so many equal parts of the straight line from the
                embeddings of the corrupted prompt to those of the prompt; None: that of the clean run.
        """
        clean, corrupted = self._stream_before(0), self._patched(in_layer(0, RESID_PRE))
        shares = [1.0] if steps is None else midpoints(steps, clean).tolist()
        found = [self._attributed_at(corrupted + share * (clean - corrupted) if steps else clean) for share in shares]
        return torch.stack(found).mean(0)

    def _attributed_at(self, embedded: Tensor) -> Tensor:
        """The same with gradients of the run of given embeddings."""
        graph, parts = self._graph, []
        seen, gradients = self._gradients(embedded)
        dtype = torch.promote_types(embedded.dtype, torch.float32)
        written = torch.zeros(
            len(embedded), len(graph.sources), embedded[0].numel(), dtype=dtype, device=embedded.device
        )
        written[:, 0] = self._change(0).flatten(1)

        def score(gradient: Tensor, n_sources: int) -> None:
            read = gradient.to(dtype).flatten(2)
            parts.append(self._of_rows((read @ written[:, :n_sources].mT).double()).flatten(1))

        for layer in range(len(graph.parallel)):
            first, end, mlp_in = graph.below_block(layer), graph.below_block(layer + 1) - 1, in_layer(layer, MLP_IN)
            score(self._pulled_from_heads(layer, seen, gradients), first)
            written[:, first:end] = self._changes_of_heads(layer, seen[in_layer(layer, ATTN_Z)]).flatten(2)
            score(self._pulled(seen, gradients, mlp_in, layer).unsqueeze(1), first if graph.parallel[layer] else end)
            written[:, end] = self._change(end).flatten(1)
        score(gradients[in_layer(len(graph.parallel) - 1, RESID_POST)].unsqueeze(1), len(graph.sources))
        found = torch.cat(parts, dim=1)
        check_rows(found, "Attributions of edges", "Look at the objective, which may have no gradient there.")
        return found

    def _gradients(self, embedded: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Activations in the graph of a run, and gradients of the objective by what is read, by hook point."""
        seen: dict[str, Tensor] = {}
        leaf = embedded.detach().requires_grad_()

        def note(name: str) -> Edit:
            def keep(activations: Tensor) -> Tensor:
                seen[name] = activations.view_as(activations)  # no other reader has this tensor
                return seen[name]

            return keep

        layers = range(len(self._graph.parallel))
        last = in_layer(len(layers) - 1, RESID_POST)
        read = [in_layer(layer, part) for layer in layers for part in (*HEAD_INPUTS, MLP_IN)] + [last]
        others = [in_layer(layer, part) for layer in layers for part in (RESID_PRE, ATTN_Z, ATTN_OUT)]
        edits: dict[str, Edit] = {name: note(name) for name in (*others, *read)}
        edits[in_layer(0, RESID_PRE)] = lambda _: note(in_layer(0, RESID_PRE))(leaf)
        backend = self._backend
        with model_lock(backend.model), torch.enable_grad(), frozen_parameters(backend.model):
            total = self.run.measured(backend.forward(self.inputs, edits, self._points)).sum()
            tensors = [seen[name] for name in read]
            if not total.requires_grad:
                return seen, {name: torch.zeros_like(item) for name, item in zip(read, tensors, strict=True)}
            found = torch.autograd.grad(total, tensors, retain_graph=True, materialize_grads=True)
        return seen, dict(zip(read, found, strict=True))

    def _pulled_from_heads(self, layer: int, seen: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Tensor:
        """Gradients by what each head of a block reads, before the norm, ``[s, 3 * n_heads, pos, d_model]``."""
        found = []
        for part in HEAD_INPUTS:
            name = in_layer(layer, part)
            for head in range(self._graph.n_heads):
                of_head = torch.zeros_like(gradients[name])
                of_head[:, :, head] = gradients[name][:, :, head]
                found.append(self._pulled(seen, {name: of_head}, name, layer))
        return torch.stack(found, dim=1)

    def _pulled(self, seen: Mapping[str, Tensor], gradients: Mapping[str, Tensor], name: str, layer: int) -> Tensor:
        """A gradient by what is read, as one by the residual stream before its norm, ``[s, pos, d_model]``."""
        middle = name == in_layer(layer, MLP_IN) and not self._graph.parallel[layer]
        source = in_layer(layer, ATTN_OUT if middle else RESID_PRE)  # attention's output goes into the stream alone
        found = torch.autograd.grad(seen[name], seen[source], gradients[name], retain_graph=True, allow_unused=True)[0]
        if found is None:
            raise AnalysisError(
                f"{name} is not made of the residual stream of its block, as where blocks share keys and values: edges "
                "into it are those of another block. Ask for exact effects of nodes (node_patching)."
            )
        return found / self._stream.factors[source] if middle else found

    def _changes_of_heads(self, layer: int, z: Tensor) -> Tensor:
        """What each head of a block adds to the stream, clean minus corrupted, to first order at ``z``."""
        name, n_heads = in_layer(layer, ATTN_Z), self._graph.n_heads
        moved = (self._clean[name].flatten(2) - self._patched(name)).unflatten(-1, (n_heads, -1))
        each = torch.zeros(n_heads, *moved.shape).to(moved)
        for head in range(n_heads):
            each[head, :, :, head] = moved[:, :, head]
        return self._stream.slopes_of_heads(layer, z.detach().flatten(2), each.flatten(-2)).transpose(0, 1)


def corrupted_inputs(question: Question, batch: RowsAsked) -> ModelInputs:
    """What is run for the corrupted prompts of a batch, with the answers that follow the prompts. Each row has one."""
    rows = [evolve(row, tokens=row.corrupted) for row in batch.rows if row.corrupted is not None]
    side = getattr(question.tokenizer, "padding_side", "left")
    device = question.backend.model_device
    return Sequences.of(rows, question.pad, side, device, measured_tokens(question.objective)).inputs
