"""What goes straight from what is written into the residual stream to an objective of the logits.

The scales of the norms on the way, the last one and those that may follow a sublayer, are those of the forward. With
these held, everything between is linear, and the contributions of all that is written sum to the objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.edits import Edit
from interpretune.activations.hook_names import (
    ATTN_OUT,
    ATTN_Z,
    MLP_ACT,
    MLP_OUT,
    RESID_MID,
    RESID_POST,
    RESID_PRE,
    canonical,
    in_layer,
    split_layer,
)
from interpretune.activations.inputs import ModelInputs, Points
from interpretune.backends.backend import AnalysisBackend
from interpretune.backends.measured_norm import TOLERANCE, MeasuredNorm
from interpretune.backends.unembedding import output_of
from interpretune.errors import AnalysisError, HookPointError
from interpretune.system.torch_state import frozen_parameters, gradients_of

STREAM = (RESID_PRE, RESID_MID, RESID_POST)
ADDED = (ATTN_OUT, MLP_OUT)
PROJECTED = (ATTN_Z, MLP_ACT)

Objective = Callable[[Tensor], Tensor]
"""One number a row, ``[n]``, of logits ``[n, vocab]``."""


@torch.no_grad()
def activations_at(
    backend: AnalysisBackend, inputs: ModelInputs, names: Sequence[str], points: Points
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits ``[n, vocab]`` and activations ``[n, width]`` at points, these by canonical name, of one forward."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Edit:
        def keep(activations: Tensor) -> Tensor:
            seen[name] = points.of(activations).flatten(1).detach().clone()
            return activations

        return keep

    logits = backend.forward(inputs, {name: note(name) for name in dict.fromkeys(map(canonical, names))}, points)
    return logits, seen


@frozen(eq=False)
class LayerReading:
    """Logits of a layer of the residual stream, ``[n, vocab]`` each.

    Attributes:
        hook_point: Where the stream is.
        logits: The last norm has the scale that it gives this layer.
        scale_held: It has that of the actual forward.
    """

    hook_point: str
    logits: Tensor
    scale_held: Tensor


class DirectPaths:
    """A model's ways from hook points straight to the logits; norms are measured once, when they are first met."""

    def __init__(self, backend: AnalysisBackend) -> None:
        self.backend = backend
        self.last = in_layer(backend.n_layers - 1, RESID_POST)
        self._norms: dict[str, MeasuredNorm | None] = {}
        self._coordinates: dict[str, Tensor] = {}

    def final_norm(self, like: Tensor) -> MeasuredNorm:
        """The last norm; ``like`` is a vector that it reads."""
        if self.last not in self._norms:
            self._norms[self.last] = MeasuredNorm.of(self.backend.final_norm, like)
        found = self._norms[self.last]
        assert found is not None, "there is one"
        return found

    def norm_after(self, hook_point: str, like: Tensor) -> MeasuredNorm | None:
        """The norm after a sublayer's last projection; ``like`` is a vector that it reads."""
        if hook_point not in self._norms:
            norm = self.backend.norm_after(hook_point)
            self._norms[hook_point] = None if norm is None else MeasuredNorm.of(norm, like)
        return self._norms[hook_point]

    def run(self, inputs: ModelInputs, points: Points, names: Sequence[str], objective: Objective) -> DirectRun:
        """Run a batch.

        Raises:
            AnalysisError: The objective is not linear, or the model has another way from its last block to the logits.
        """
        needed = [self.last, *map(canonical, names), *self._blocks_of(names)]
        logits, seen = activations_at(self.backend, inputs, needed, points)
        return DirectRun(self, logits, seen, objective)

    @torch.no_grad()
    def layers(self, inputs: ModelInputs, points: Points) -> Iterator[LayerReading]:
        """Read the residual stream before the first block, and after each, as if it went to the last norm.

        Raises:
            AnalysisError: The model has another way from its last block to the logits.
        """
        own, seen = activations_at(self.backend, inputs, list(self.stream), points)
        last = seen[self.last]
        norm = self.final_norm(last)
        scales = norm.scales(last.double(), self.backend.final_norm(last).double(), "The last norm").unsqueeze(-1)
        for name in self.stream:
            logits = self.backend.run_above_blocks(seen[name], {})
            if name == self.last:
                _check_same(logits, own)
            held = norm.weight * norm.centred(seen[name].double()) / scales + norm.bias
            yield LayerReading(name, logits, self.backend.unembed(held.to(last)))

    @property
    def stream(self) -> Iterator[str]:
        """Hook points of the residual stream before the first block, and after each."""
        yield in_layer(0, RESID_PRE)
        yield from (in_layer(layer, RESID_POST) for layer in range(self.backend.n_layers))

    @property
    def written(self) -> Iterator[str]:
        """Hook points of all that is added up to the residual stream: the embedding, and outputs of sublayers."""
        yield in_layer(0, RESID_PRE)
        for layer in range(self.backend.n_layers):
            yield from (name for part in ADDED if self.has(name := in_layer(layer, part)))

    def _blocks_of(self, names: Sequence[str]) -> Iterator[str]:
        """Hook points that say how what sublayers write is added to the stream."""
        for name in map(canonical, names):
            layer, part = split_layer(name) or (0, name)
            if part in (*ADDED, *PROJECTED):
                yield from (in_layer(layer, item) for item in (RESID_PRE, RESID_POST))
                yield from (found for item in ADDED if self.has(found := in_layer(layer, item)))

    def has(self, name: str) -> bool:
        """Whether the model has a hook point."""
        try:
            self.backend.check_hook_points([name])
        except HookPointError:
            return False
        return True

    @torch.no_grad()
    def sizes(self, hook_point: str, vectors: Tensor) -> Tensor:
        """What the last norm would divide by if it read what a vector alone writes; factors of rows are left out.

        Args:
            hook_point: Where the vectors are.
            vectors: ``[m, width]``, in the dtype of the model.

        Returns:
            ``[m]``, float64.
        """
        written = vectors
        if (split_layer(hook_point) or (0, ""))[1] in PROJECTED:
            nothing = torch.zeros_like(vectors[:1])
            written = self.backend.written_by(hook_point, vectors) - self.backend.written_by(hook_point, nothing)
            norm = self.norm_after(hook_point, written)
            written = written if norm is None else norm.weight * norm.centred(written.double())
        return self.final_norm(written.to(vectors)).size(written.double())

    def sizes_of_coordinates(self, hook_point: str, like: Tensor) -> Tensor:
        """The same of each coordinate of a hook point, ``[width]``; ``like`` is a vector there."""
        if hook_point not in self._coordinates:
            width = like.shape[-1]
            parts = torch.arange(width, device=like.device).split(1024)
            units = (torch.nn.functional.one_hot(part, width).to(like) for part in parts)
            self._coordinates[hook_point] = torch.cat([self.sizes(hook_point, part) for part in units])
        return self._coordinates[hook_point]


class DirectRun:
    """A forward of a batch, and slopes of an objective of it by what is written, the scales of norms held.

    Everything here is of ``n`` points, and in float64.

    Attributes:
        paths: The model's ways to the logits.
        seen: Activations by canonical name, ``[n, width]``, in the dtype of the model.
        objective: Of the model's logits, ``[n]``.
        before_cap: The same before a soft cap, if the model bends its logits with one: what the parts sum to.
        bias: What nothing of the residual stream contributes: biases of the last norm and of the unembedding.
    """

    def __init__(self, paths: DirectPaths, logits: Tensor, seen: dict[str, Tensor], objective: Objective) -> None:
        """Use ``DirectPaths.run``."""
        self.paths, self.seen, backend = paths, seen, paths.backend
        stream = seen[paths.last]
        self._norm = paths.final_norm(stream)
        with torch.no_grad():
            normed = backend.final_norm(stream)
            made = backend.unembed(normed)
            _check_same(made, logits)
        with torch.enable_grad(), frozen_parameters(backend.model):
            read = normed.detach().requires_grad_()
            raw = backend.unembed(read, before_cap=True)
            scale = logit_scale(raw.detach(), made)
            found = objective(raw * scale)
            slopes = gradients_of(found.sum(), [read])[0].double()
        self.objective, self.before_cap = objective(logits).double(), found.detach().double()
        along = ((normed.double() - self._norm.bias) * slopes).sum(-1)
        self.bias = self.before_cap - along
        with torch.no_grad():
            nothing = self._norm.bias.to(normed).expand_as(normed)
            apart = objective(backend.unembed(nothing, before_cap=True) * scale).double()
        size = self.before_cap.abs() + (normed.double() * slopes).abs().sum(-1)
        if not bool(((apart - self.bias).abs() <= max(1e-3, 8 * torch.finfo(logits.dtype).eps) * size).all()):
            raise AnalysisError(
                "This objective is not linear in the logits, so that no contributions sum to it. Ask for logit_diff; "
                "where there are several other answers, against their mean: LogitDiff(against='mean')."
            )
        self._scale = scale
        self._scales = self._norm.scales(stream.double(), normed.double(), "The last norm")
        self._slopes = self._norm.pulled_back(slopes, self._scales)
        self._scales_after: dict[str, Tensor] = {}

    def slopes(self, hook_point: str) -> Tensor:
        """Slopes of the objective by activations at a hook point, straight to the logits, ``[n, width]``.

        Raises:
            AnalysisError: What is there is not written into the residual stream, or in an unknown way.
        """
        part = (split_layer(hook_point) or (0, hook_point))[1]
        if part in STREAM:
            return self._slopes
        if part in ADDED:
            return self.factor(hook_point) * self._slopes
        if part not in PROJECTED:
            raise AnalysisError(
                f"What is at {hook_point} is not written into the residual stream. Direct attribution is of "
                f"{', '.join((*PROJECTED, *ADDED, *STREAM))} of blocks, and of latents that are written there; "
                "layers.0.resid_pre has the embedding."
            )
        slopes, backend = self.slopes(output_of(hook_point)), self.paths.backend
        with torch.enable_grad(), frozen_parameters(backend.model):
            leaf = self.seen[hook_point].detach().requires_grad_()
            written = backend.written_by(hook_point, leaf)
            made, plain = self.seen[output_of(hook_point)].double(), written.detach()
            norm = self.paths.norm_after(hook_point, plain)
            if norm is not None:
                scales = norm.scales(plain.double(), made, f"The norm after {hook_point}")
                self._scales_after[hook_point], slopes = scales, norm.pulled_back(slopes, scales)
            elif not bool((plain.double() - made).norm() <= TOLERANCE * made.norm()):
                raise AnalysisError(
                    f"What is at {hook_point} does not become {output_of(hook_point)} by a projection alone, and "
                    f"{type(backend).__name__} names no norm that follows (norm_after). Ask for "
                    f"{output_of(hook_point)}."
                )
            return gradients_of((written * slopes.to(written)).sum(), [leaf])[0].double()

    @torch.no_grad()
    def through_norm(self, hook_point: str, vectors: Tensor) -> Tensor:
        """What parts of the activations at a hook point become behind the last norm, scales of norms held.

        Args:
            hook_point: As ``slopes`` takes it.
            vectors: The parts, ``[n, width]``.

        Returns:
            ``[n, d_model]``, without biases.

        Raises:
            AnalysisError: As ``slopes``.
        """
        self.slopes(hook_point)  # refuses what leads nowhere, and finds the scales of a norm that may follow
        part, vectors = (split_layer(hook_point) or (0, hook_point))[1], vectors.to(self.seen[self.paths.last])
        if part in PROJECTED:
            nothing = torch.zeros_like(vectors[:1])
            written = self.paths.backend.written_by(hook_point, torch.cat([vectors, nothing])).double()
            written, norm = written[:-1] - written[-1:], self.paths.norm_after(hook_point, vectors)
            if norm is not None:
                scales = self._scales_after[hook_point].unsqueeze(-1)
                written = norm.weight * norm.centred(written) / scales
            return self.through_norm(output_of(hook_point), written)
        factor = self.factor(hook_point) if part in ADDED else 1.0
        return self._norm.weight * self._norm.centred(factor * vectors.double()) / self._scales.unsqueeze(-1)

    @torch.no_grad()
    def logits_of(self, normed: Tensor) -> Tensor:
        """Logits, before a cap, of parts of what the last norm returns, ``[n, d_model]`` to ``[n, vocab]``."""
        parts = torch.cat([normed, torch.zeros_like(normed[:1])]).to(self.seen[self.paths.last])
        raw = self.paths.backend.unembed(parts, before_cap=True).double()
        return self._scale * (raw[:-1] - raw[-1:])

    def alone(self, hook_point: str, contributions: Tensor, sizes: Tensor) -> Tensor:
        """Contributions if the last norm read what a unit writes, and nothing else.

        Args:
            hook_point: Where the units are; their slopes are known already.
            contributions: ``[n, k]``.
            sizes: Of what they write, ``[n, k]``, as ``DirectPaths.sizes`` gives them.
        """
        part, reach = (split_layer(hook_point) or (0, hook_point))[1], torch.ones_like(self._scales)
        if part not in STREAM:
            reach = reach * abs(self.factor(hook_point if part in ADDED else output_of(hook_point)))
        reach = reach / self._scales_after.get(hook_point, torch.ones_like(reach))
        scales = ((sizes * reach.unsqueeze(-1)).square() + self._norm.eps).sqrt()
        found = contributions * self._scales.unsqueeze(-1) / scales
        return found.where(contributions != 0, 0.0)

    def adds(self, hook_point: str) -> bool:
        """Whether what is there is the output of a sublayer, which is added to the stream."""
        return (split_layer(hook_point) or (0, hook_point))[1] in ADDED

    def factor(self, output: str) -> float:
        """The constant by which a block multiplies what a sublayer writes; Granite has one."""
        layer, part = split_layer(output) or (0, output)
        names = [name for item in ADDED if (name := in_layer(layer, item)) in self.seen]
        before, after = (self.seen[in_layer(layer, item)].double().cpu() for item in (RESID_PRE, RESID_POST))
        columns = torch.stack([self.seen[name].double().cpu().flatten() for name in names], dim=1)
        total = (after - before).flatten().unsqueeze(1)
        factors = torch.linalg.lstsq(columns, total).solution
        if (total - columns @ factors).norm() > TOLERANCE * total.norm():  # something else is added too
            return 1.0
        factor = float(factors[names.index(in_layer(layer, part))])
        return 1.0 if abs(factor - 1) < torch.finfo(self.seen[output].dtype).eps ** 0.5 else factor


def logit_scale(raw: Tensor, logits: Tensor) -> float:
    """The constant that makes logits of what the unembedding gives; 1 where a soft cap bends them."""
    tolerance = max(1e-5, 4 * torch.finfo(raw.dtype).eps)
    raw, logits = raw.double(), logits.double()
    scale = float((raw * logits).sum() / raw.square().sum())
    bent = bool((logits - scale * raw).abs().max() > tolerance * logits.abs().max())
    return 1.0 if bent or abs(scale - 1) < tolerance else scale


def _check_same(found: Tensor, logits: Tensor) -> None:
    worst = (found - logits).abs().max()
    if not bool(worst <= max(1e-3, 8 * torch.finfo(logits.dtype).eps) * logits.abs().max()):
        raise AnalysisError(
            f"What the model has above its blocks does not give its own logits of what the last block returns: they "
            f"differ by up to {float(worst):.3g}. Something else leads from the blocks to the logits."
        )
