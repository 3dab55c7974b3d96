"""What a model makes of vectors of its residual stream, and what its sublayers write there.

Everything here is made by the model itself, by forwards with edits at its hook points. A backend that has the parts of
the model in its hands can spare itself most of the work.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from interpretune.activations.edits import Edit, in_turn
from interpretune.activations.hook_names import (
    ATTN_OUT,
    ATTN_Z,
    FINAL_NORM,
    LOGITS,
    MLP_OUT,
    RESID_POST,
    RESID_PRE,
    in_layer,
    split_layer,
)
from interpretune.activations.hooked_model import AllCaptured, HookedModel, noted_last
from interpretune.activations.inputs import ModelInputs, Points, lone_tokens
from interpretune.backends.measured_norm import NormAt


class UnembeddingModel(HookedModel):
    """A model whose last norm, unembedding and last projections of sublayers take any vectors."""

    @functools.cached_property
    def n_layers(self) -> int:
        """Number of blocks."""
        return 1 + max((found[0] for name in self.hook_point_names() if (found := split_layer(name))), default=-1)

    def final_norm(self, residual: Tensor) -> Tensor:
        """The model's last norm, ``[n, d_model]`` to the same; ``HookPointError`` where there is none."""
        normed: list[Tensor] = []
        with contextlib.suppress(AllCaptured):
            self.run_above_blocks(residual, {FINAL_NORM: noted_last(normed)})
        return normed[0][:, 0]

    def unembed(self, normed: Tensor, *, before_cap: bool = False) -> Tensor:
        """Logits of what the last norm returns, as the model makes them, ``[n, d_model]`` to ``[n, vocab]``.

        Args:
            normed: In the dtype of the model; what is computed can be differentiated by it.
            before_cap: Those of the unembedding itself, before a soft cap or a scale.

        Raises:
            HookPointError: The model has no hook point ``final_norm`` or ``logits``.
        """
        raw: list[Tensor] = []

        def note(activations: Tensor) -> Tensor:
            raw.append(activations[:, 0])
            return activations

        edits: dict[str, Edit] = {FINAL_NORM: lambda _: normed.unsqueeze(1)}
        logits = self.run_above_blocks(normed.detach(), {**edits, LOGITS: note} if before_cap else edits)
        return raw[0] if before_cap else logits

    def run_above_blocks(self, residual: Tensor, edits: Mapping[str, Edit]) -> Tensor:
        """Run what the model has above its blocks; backends that can leave the blocks out do so here.

        Args:
            residual: The residual stream after the last block, ``[n, d_model]``.
            edits: At hook points above the blocks, where activations are ``[n, 1, ...]``.

        Returns:
            Logits ``[n, vocab]``.
        """
        last = in_layer(self.n_layers - 1, RESID_POST)
        return self.forward(lone_tokens(residual), {last: lambda _: residual.unsqueeze(1), **edits})[:, 0]

    def run_from_block(
        self, inputs: ModelInputs, start: int, residual: Tensor, edits: Mapping[str, Edit], points: Points
    ) -> Tensor:
        """Run whole rows from a block up; backends that can leave the blocks below out do so here.

        Args:
            inputs: The rows.
            start: First block to run; ``n_layers`` runs none.
            residual: Residual stream before it, ``[n, pos, d_model]``.
            edits: At hook points of what runs.
            points: Where logits are wanted.

        Returns:
            ``[len(points), vocab]``.
        """
        here = in_layer(start, RESID_PRE) if start < self.n_layers else in_layer(start - 1, RESID_POST)
        put: list[Edit] = [lambda _: residual]
        if here in edits:
            put.append(edits[here])
        return self.forward(inputs, {**edits, here: in_turn(put)}, points)

    def written_by(self, hook_point: str, activations: Tensor) -> Tensor:
        """What the last projection of attention or MLP makes of activations, before a norm that may follow.

        Backends that have the projection itself need run nothing else.

        Args:
            hook_point: ``attn_z`` or ``mlp_act`` of a block.
            activations: There, ``[n, width]``.

        Returns:
            ``[n, d_model]``, with gradient.
        """
        written: list[Tensor] = []

        def put(there: Tensor) -> Tensor:
            return activations.reshape(there.shape)

        with contextlib.suppress(AllCaptured):
            self.forward(lone_tokens(activations), {hook_point: put, output_of(hook_point): noted_last(written)})
        return written[0][:, 0]

    def projection(self, hook_point: str) -> Tensor | None:
        """Weights of that projection, ``[width, d_model]``; None: it is no plain linear map, or not at hand.

        Args:
            hook_point: ``attn_z`` or ``mlp_act`` of a block.
        """
        return None

    def norm_after(self, hook_point: str) -> Callable[[Tensor], Tensor] | None:
        """The norm between that projection and the residual stream, ``[n, d_model]`` to the same; None: there is none.

        Args:
            hook_point: ``attn_z`` or ``mlp_act`` of a block.
        """
        return None

    def norms(self) -> Sequence[NormAt]:
        """All norms below the unembedding, but for those inside attention; none: they are unknown."""
        return ()


def output_of(hook_point: str) -> str:
    """Where a sublayer's output is, from the name of its ``attn_z`` or ``mlp_act``."""
    layer, part = split_layer(hook_point) or (0, hook_point)
    return in_layer(layer, ATTN_OUT if part == ATTN_Z else MLP_OUT)
