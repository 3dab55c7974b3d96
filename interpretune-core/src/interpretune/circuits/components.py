"""Heads, MLPs, the embedding and the logits of a model as the nodes of a graph whose edges are the residual stream.

What a node writes is added to the stream, and all nodes above read it. So there is an edge from every node to each
thing that a later node reads: the queries, keys and values of a head, the input of an MLP, and what becomes the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.edits import Edit
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
    canonical,
    in_layer,
    split_layer,
)
from interpretune.activations.inputs import probe_inputs
from interpretune.backends.backend import AnalysisBackend
from interpretune.errors import AnalysisError
from interpretune.questions.units import Heads, heads_of

LARGEST_REST = 0.05
"""Largest share of what a block adds to the stream that may be unexplained; weights of 16 bits round."""

OWN = "{} itself"
"""What a model has at a hook point where something else is put."""


@frozen
class Component:
    """What a node writes, or one of the things that a node reads.

    Attributes:
        hook_point: Where it is; the embedding is ``layers.0.resid_pre``.
        head: The head whose part it is; None: all that is there.
    """

    hook_point: str
    head: int | None = None

    @property
    def name(self) -> str:
        """Such as ``layers.3.attn_z head 2``, ``layers.3.attn_k head 2``, ``layers.3.mlp_out`` and ``logits``."""
        return self.hook_point if self.head is None else f"{self.hook_point} head {self.head}"


@frozen
class ComponentGraph:
    """The nodes of a model, in the order in which they run.

    Attributes:
        n_heads: Of a block.
        parallel: Of each block whether its MLP reads what its attention reads, and not what that adds.
    """

    n_heads: int
    parallel: tuple[bool, ...]

    @classmethod
    def named(cls, told: Mapping[str, Any]) -> ComponentGraph:
        """The graph that ``told`` describes."""
        return cls(told["n_heads"], tuple(told["parallel"]))

    @property
    def told(self) -> dict[str, Any]:
        """For manifests."""
        return {"n_heads": self.n_heads, "parallel": list(self.parallel)}

    @cached_property
    def sources(self) -> list[Component]:
        """What writes: the embedding, then of each block its heads and its MLP."""
        found = [Component(in_layer(0, RESID_PRE))]
        for layer in range(len(self.parallel)):
            found += [Component(in_layer(layer, ATTN_Z), head) for head in range(self.n_heads)]
            found.append(Component(in_layer(layer, MLP_OUT)))
        return found

    @cached_property
    def targets(self) -> list[Component]:
        """What is read: of each block queries, keys and values of its heads and the input of its MLP; the logits."""
        found = []
        for layer in range(len(self.parallel)):
            for part in HEAD_INPUTS:
                found += [Component(in_layer(layer, part), head) for head in range(self.n_heads)]
            found.append(Component(in_layer(layer, MLP_IN)))
        return [*found, Component(LOGITS)]

    def below_block(self, layer: int) -> int:
        """How many sources, the first ones, write before a block; the blocks' number: all."""
        return 1 + layer * (self.n_heads + 1)

    def below(self, target: Component) -> int:
        """How many sources, the first ones, a target reads."""
        layer, part = split_layer(target.hook_point) or (len(self.parallel), "")
        within = part == MLP_IN and not self.parallel[layer]
        return self.below_block(layer) + within * self.n_heads

    @cached_property
    def edges(self) -> list[tuple[int, int]]:
        """Indices of the source and the target of each edge, those into one target together."""
        return [(i, j) for j, target in enumerate(self.targets) for i in range(self.below(target))]

    def edge(self, source: str, target: str) -> tuple[int, int]:
        """Indices of an edge's source and target.

        Raises:
            AnalysisError: There are no such nodes, or the source runs after the target.
        """
        i, j = _index(source, self.sources, "writes"), _index(target, self.targets, "reads")
        if i >= self.below(self.targets[j]):
            raise AnalysisError(
                f"There is no edge from {source!r} to {target!r}: the target reads the residual stream before the "
                "source writes there. Name the earlier node first."
            )
        return i, j


def _index(name: object, among: Sequence[Component], does: str) -> int:
    wanted = name
    if isinstance(name, str):
        point, _, rest = name.partition(" ")
        wanted = f"{canonical(point)} {rest}".strip()
    found = next((i for i, item in enumerate(among) if item.name == wanted), None)
    if found is None:
        told = dict.fromkeys(item.name for item in (among[0], among[1], among[-2], among[-1]))
        kinds = ", ".join(
            dict.fromkeys(str((split_layer(item.hook_point) or (0, item.hook_point))[1]) for item in among)
        )
        raise AnalysisError(
            f"No node {does} {name!r}; what {does} the residual stream is called {kinds}: there are {', '.join(told)} "
            "and those between."
        )
    return found


@frozen(eq=False)
class WrittenStream:
    """How a model's nodes write into its residual stream.

    Attributes:
        backend: Runs the model.
        graph: Its nodes.
        factors: By hook point, the constant by which a block multiplies what a sublayer writes; Granite has one.
    """

    backend: AnalysisBackend
    graph: ComponentGraph
    factors: Mapping[str, float]

    @classmethod
    @torch.no_grad()
    def of(cls, backend: AnalysisBackend) -> WrittenStream:
        """Find out by two forwards of four tokens, in which attention and MLP of each block write random vectors.

        Raises:
            AnalysisError: A block adds something else to the stream, or what its heads add is unknown.
            HookPointError: The model lacks a hook point that is needed.
        """
        Heads().at(backend)  # refuses heads that do not share the coordinates evenly
        layers = range(backend.n_layers)
        parts = (RESID_PRE, ATTN_Z, ATTN_OUT, MLP_IN, MLP_OUT, RESID_POST)
        backend.check_hook_points([in_layer(layer, part) for layer in layers for part in parts])
        one, other = (_seen(backend, seed) for seed in range(2))
        parallel: list[bool] = []
        factors: dict[str, float] = {}
        for layer in layers:
            name = in_layer(layer, MLP_IN)
            parallel.append(torch.equal(one[name], other[name]))
            if not parallel[-1]:
                backend.check_hook_points([in_layer(layer, RESID_MID)])
            factors.update(_factors(layer, one))
        found = cls(backend, ComponentGraph(heads_of(backend), tuple(parallel)), factors)
        for layer in layers:
            found._check_projection(layer, one)
        return found

    def _check_projection(self, layer: int, seen: Mapping[str, Tensor]) -> None:
        name = in_layer(layer, ATTN_OUT)
        own = self.factors[name] * seen[OWN.format(name)].double()
        made = self.by_attention(layer, seen[in_layer(layer, ATTN_Z)].flatten(2)).double()
        if not bool((made - own).norm() <= LARGEST_REST * own.norm()):
            raise AnalysisError(
                f"Something else than a projection, and possibly a norm, leads from the outputs of the heads of block "
                f"{layer} to what its attention adds to the residual stream, so that what one head adds is unknown."
            )

    @torch.no_grad()
    def by_attention(self, layer: int, z: Tensor) -> Tensor:
        """What attention adds to the stream, from the outputs of its heads, ``[..., width]`` to ``[..., d_model]``."""
        written, norm = self._projected(layer, z), self.backend.norm_after(in_layer(layer, ATTN_Z))
        return self.factors[in_layer(layer, ATTN_OUT)] * (written if norm is None else norm(written)).unflatten(
            0, z.shape[:-1]
        )

    @torch.no_grad()
    def slopes_of_heads(self, layer: int, z: Tensor, changes: Tensor) -> Tensor:
        """What small changes of the heads' outputs add to the stream, to first order.

        Args:
            layer: The block.
            z: What they are, ``[..., width]``.
            changes: Of each head, 0 elsewhere, ``[k, ..., width]``.

        Returns:
            ``[k, ..., d_model]``.
        """
        norm = self.backend.norm_after(in_layer(layer, ATTN_Z))
        written = self._projected(layer, changes) - self._projected(layer, torch.zeros_like(changes[:1, :1, :1]))
        if norm is not None:
            written = _along(norm, self._projected(layer, z).repeat(len(changes), 1), written)
        return self.factors[in_layer(layer, ATTN_OUT)] * written.unflatten(0, changes.shape[:-1])

    def _projected(self, layer: int, z: Tensor) -> Tensor:
        return self.backend.written_by(in_layer(layer, ATTN_Z), z.flatten(0, -2))


@torch.enable_grad()
def _along(norm: Callable[[Tensor], Tensor], at: Tensor, changes: Tensor) -> Tensor:
    """The derivative of a norm along changes of what it reads: by the gradient of a gradient, which is linear."""
    read = at.detach().requires_grad_()
    made = norm(read)
    slopes = torch.zeros_like(made, requires_grad=True)
    pulled = torch.autograd.grad(made, read, slopes, create_graph=True)[0]
    return torch.autograd.grad(pulled, slopes, changes)[0]


def _seen(backend: AnalysisBackend, seed: int) -> dict[str, Tensor]:
    """Activations of a forward in which sublayers write random vectors and each block leaves the stream as it was.

    Vectors of attention, which are kept under ``attn_out``, differ between seeds; those of MLPs do not.
    """
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Edit:
        def keep(activations: Tensor) -> Tensor:
            seen[name] = activations.clone()
            return activations

        return keep

    def write(name: str, draw: torch.Generator, before: str) -> Edit:
        def apply(activations: Tensor) -> Tensor:
            seen[OWN.format(name)] = activations.clone()
            vectors = torch.randn(activations.shape, generator=draw, dtype=torch.float64)
            seen[name] = (vectors * seen[before].double().std().cpu()).to(activations)
            return seen[name]

        return apply

    def undo(name: str, before: str) -> Edit:
        def apply(activations: Tensor) -> Tensor:
            seen[name] = activations.clone()
            return seen[before].clone()

        return apply

    edits: dict[str, Edit] = {}
    draws = [torch.Generator().manual_seed(number) for number in (seed, 2)]
    for layer in range(backend.n_layers):
        names = {part: in_layer(layer, part) for part in (RESID_PRE, ATTN_OUT, MLP_IN, MLP_OUT, RESID_POST)}
        edits[names[RESID_PRE]] = note(names[RESID_PRE])
        edits[names[MLP_IN]] = note(names[MLP_IN])
        edits[in_layer(layer, ATTN_Z)] = note(in_layer(layer, ATTN_Z))
        for part, draw in zip((ATTN_OUT, MLP_OUT), draws, strict=True):
            edits[names[part]] = write(names[part], draw, names[RESID_PRE])
        edits[names[RESID_POST]] = undo(names[RESID_POST], names[RESID_PRE])
    backend.forward(probe_inputs(backend.model_device, 4), edits)
    return seen


def _factors(layer: int, seen: Mapping[str, Tensor]) -> Iterator[tuple[str, float]]:
    names = [in_layer(layer, part) for part in (ATTN_OUT, MLP_OUT)]
    columns = torch.stack([seen[name].double().cpu().flatten() for name in names], dim=1)
    before, after = (seen[in_layer(layer, part)].double().cpu() for part in (RESID_PRE, RESID_POST))
    total = (after - before).flatten().unsqueeze(1)
    found = torch.linalg.lstsq(columns, total).solution
    if not bool((total - columns @ found).norm() <= LARGEST_REST * total.norm()):
        raise AnalysisError(
            f"Block {layer} adds something else to the residual stream than what its attention and its MLP write, so "
            "that its heads and its MLP are not all that there is. Patch what is there by interventions."
        )
    exact = torch.finfo(seen[names[0]].dtype).eps ** 0.5
    for name, factor in zip(names, found.flatten().tolist(), strict=True):
        yield name, 1.0 if abs(factor - 1) < exact else factor
