"""A prompt's forward in which all is held that is not linear, and slopes in it.

Attention patterns and the scales of norms are those of the model as it is, and what MLPs write is given. What remains
of the model is linear: the residual stream, the values that attention moves, skip connections of transcoders, the last
norm and the unembedding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.edits import Edit, in_turn
from interpretune.activations.hook_names import (
    ATTN_PATTERN,
    FINAL_NORM,
    MLP_OUT,
    RESID_PRE,
    canonical,
    in_layer,
)
from interpretune.activations.hooked_model import AllCaptured
from interpretune.activations.inputs import ModelInputs
from interpretune.backends.backend import AnalysisBackend
from interpretune.backends.measured_norm import HeldNorm
from interpretune.circuits.skip_connections import skip_connections
from interpretune.errors import AnalysisError
from interpretune.latents.latent_model import LatentModel

EMBEDDED = in_layer(0, RESID_PRE)
"""What the residual stream begins with: embeddings of tokens, and of positions where a model adds them."""


@frozen(eq=False)
class Targets:
    """Linear functions of activations, ``m`` of them, each of one token at one hook point.

    Attributes:
        reads: Names of hook points.
        at: Index of the hook point of each, ``[m]``.
        positions: Token of each, ``[m]``.
        vectors: What activations are multiplied by, by the name of a hook point: ``[k, d]``, for the ``k`` functions
            that read there, in their order.
    """

    reads: Sequence[str]
    at: Tensor
    positions: Tensor
    vectors: Mapping[str, Tensor]

    def of(self, activations: Mapping[str, Tensor]) -> Tensor:
        """Their values, ``[m]``, of activations ``[m, pos, d]`` or ``[1, pos, d]`` by hook point."""
        parts = []
        for i, name in enumerate(self.reads):
            rows = (self.at == i).nonzero().flatten()
            if len(rows):
                seen = activations[name].flatten(2)
                found = (seen[rows if len(seen) > 1 else 0, self.positions[rows]] * self.vectors[name]).sum(-1)
                parts.append((rows, found))
        order = torch.cat([rows for rows, _ in parts]).argsort()
        return torch.cat([found for _, found in parts])[order]

    def __len__(self) -> int:
        return len(self.at)


class LinearRun:
    """The clean forward of one prompt, and slopes of linear functions of it by what is written into the stream.

    Attributes:
        backend: Runs the model.
        writes: Hook points where the stream is written: ``layers.0.resid_pre``, and the outputs of all MLPs.
        clean: Activations by hook point, ``[1, pos, ...]``.
        written: What stands at ``writes`` beside what skip connections make, ``[1, pos, d]`` by hook point.
        logits: At the last token, ``[1, vocab]``.
    """

    def __init__(
        self, backend: AnalysisBackend, inputs: ModelInputs, models: Sequence[LatentModel], batch_size: int
    ) -> None:
        """Run the prompt.

        Args:
            backend: Runs the model.
            inputs: One row without padding.
            models: The transcoders: functions read where they read, and at the last norm.
            batch_size: How many functions there are slopes of at a time.

        Raises:
            HookPointError: The model lacks a hook point, or its attention patterns are out of reach.
            AnalysisError: The backend does not know the norms of the model, one is of an unknown kind, or a skip
                connection is not linear.
        """
        self.backend, self._inputs, self._batch_size = backend, inputs, batch_size
        layers = range(backend.n_layers)
        self._patterns = [in_layer(layer, ATTN_PATTERN) for layer in layers]
        self.writes = [EMBEDDED, *(in_layer(layer, MLP_OUT) for layer in layers)]
        self._reads = list(dict.fromkeys([*(canonical(model.hook_point) for model in models), FINAL_NORM]))
        norms = backend.norms()
        for name in (*self.writes, *self._reads, *self._patterns):
            backend.resolve_hook_point(name)
        wanted = [*self._patterns, *(name for norm in norms for name in (norm.reads, norm.makes))]
        wanted = list(dict.fromkeys([*wanted, *self.writes, *self._reads]))
        self.clean: dict[str, Tensor] = {}
        with torch.no_grad():
            self.logits = backend.forward(
                inputs, {name: noting(name, self.clean) for name in wanted}, inputs.answers
            ).detach()
        self._skips = skip_connections(models, self.clean, [backend.untouched_by(model, inputs) for model in models])
        self.written = {name: self.clean[name].clone() for name in self.writes}
        for name, made in self._skipped(self.clean):
            self.written[name] -= made
        self._norms = [norm.held(self.clean[norm.reads], self.clean[norm.makes]) for norm in norms]
        with torch.no_grad():
            self._nothing = self._forward({name: torch.zeros_like(self.clean[name]) for name in self.writes})
        self._leaves: dict[str, Tensor] = {}
        self._seen: dict[str, Tensor] = {}

    def slopes(self, targets: Targets) -> dict[str, Tensor]:
        """Slopes of functions by what is written, all else held; at most ``batch_size`` of them.

        Returns:
            ``[m, pos, d]`` by hook point.

        Raises:
            AnalysisError: Something that is not held is not linear.
        """
        if not self._leaves:  # one forward for all
            for name in self.writes:
                held = self.written[name].expand(self._batch_size, *self.written[name].shape[1:])
                self._leaves[name] = held.clone().requires_grad_()
            self._seen = self._forward(self._leaves)
        total = targets.of({name: self._seen[name][: len(targets)] for name in self._reads}).sum()
        found = torch.autograd.grad(total, [*self._leaves.values()], retain_graph=True, materialize_grads=True)
        slopes = {name: grad[: len(targets)] for name, grad in zip(self._leaves, found, strict=True)}
        with torch.no_grad():
            self._check(targets, slopes)
        return slopes

    def _check(self, targets: Targets, slopes: Mapping[str, Tensor]) -> None:
        """Refuse slopes that do not make up the whole way from nothing to the clean run."""
        parts = [(slope * self.written[name]).double().flatten(1) for name, slope in slopes.items()]
        made = torch.stack([part.sum(-1) for part in parts]).sum(0)
        size = torch.stack([part.abs().sum(-1) for part in parts]).sum(0)
        way = targets.of(self.clean).double() - targets.of(self._nothing).double()
        eps = torch.finfo(self.logits.dtype).eps
        if not bool(((made - way).abs() <= max(1e-3, 8 * eps) * size + eps).all()):
            raise AnalysisError(
                "With attention patterns, the scales of norms and the outputs of MLPs held, this model is not linear: "
                f"its activations differ by {float((made - way).abs().max()):.3g} from the sum of what is written. "
                "Attention with gates, or with norms of values, does that, and so do norms that the backend does not "
                "name (norms()). There is no attribution graph of it."
            )

    def _forward(self, writes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Activations that functions read, if this is what is written, ``[n, pos, d]`` by hook point."""
        n = len(writes[EMBEDDED])
        inputs = self._inputs.select(torch.zeros(n, dtype=torch.long, device=self._inputs.tokens.device))
        seen: dict[str, Tensor] = {}
        chains: dict[str, list[Edit]] = {}
        for norm in self._norms:
            given: dict[str, Tensor] = {}
            chains.setdefault(norm.at.reads, []).append(noting("it", given, detached=False))
            chains.setdefault(norm.at.makes, []).append(self._norm(norm, given, seen))
        for name in self._patterns:
            chains.setdefault(name, []).append(_put(self.clean[name].expand(n, *self.clean[name].shape[1:])))
        for name, value in writes.items():
            chains.setdefault(name, []).append(self._put_with_skips(name, value, seen))
        inside = {norm.at.divided for norm in self._norms}
        for name in self._reads:
            if name in inside:
                continue  # read there, it would have the slopes of scales that are not held
            chains.setdefault(name, []).append(noting(name, seen, detached=False, last=name == FINAL_NORM))
        with contextlib.suppress(AllCaptured):
            self.backend.forward(inputs, {name: in_turn(chain) for name, chain in chains.items()})
        return seen

    def _put_with_skips(self, name: str, value: Tensor, seen: Mapping[str, Tensor]) -> Edit:
        """An edit that puts what is written, and what skip connections make of what was read on the way."""
        skips = [item for item in self._skips if name in item.weights]

        def put(there: Tensor) -> Tensor:
            made = sum((item.written(seen[item.reads])[name] for item in skips), value)
            return made.reshape(there.shape)

        return put

    def _skipped(self, activations: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for item in self._skips:
            yield from item.written(activations[item.reads]).items()

    def _norm(self, norm: HeldNorm, given: Mapping[str, Tensor], seen: dict[str, Tensor]) -> Edit:
        """An edit that puts what a norm makes with its scales held, of what it was given."""

        def make(_: Tensor) -> Tensor:
            divided = norm.divided(given["it"])
            if (name := norm.at.divided) in self._reads and name is not None:
                seen[name] = self.clean[name] + divided
            return norm.makes(divided)

        return make


def noting(name: str, seen: dict[str, Tensor], *, detached: bool = True, last: bool = False) -> Edit:
    """An edit that changes nothing and notes activations, detached copies or as they are; the last ends the forward."""

    def note(activations: Tensor) -> Tensor:
        seen[name] = activations.detach().clone() if detached else activations
        if last:
            raise AllCaptured
        return activations

    return note


def _put(value: Tensor) -> Edit:
    return lambda there: value.reshape(there.shape)
