"""Rows of neurons begin above their block, which only projects them and adds the result to the residual stream.

A change of neurons changes the stream after the block by itself times the weights of the MLP's last projection. Nothing
of the block has to run again for it, except a norm that may follow the projection.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.edits import Edit
from interpretune.activations.hook_names import MLP_ACT, RESID_POST, canonical, in_layer, split_layer
from interpretune.activations.hooked_model import AllCaptured, noted_last
from interpretune.latents.identity import IdentityDictionary
from interpretune.latents.latent_model import LatentModel
from interpretune.replay.engine import ReplayEngine
from interpretune.replay.entries import Entry, span_of
from interpretune.replay.prefix import Rows
from interpretune.replay.rows import Changes

if TYPE_CHECKING:
    from interpretune.replay.prefill import Kept

PROBED = 4
"""Points at which it is tried out whether a block does nothing else with neurons."""


@frozen(eq=False)
class Projected:
    """Neurons of a block, and what becomes of a change of them.

    Attributes:
        entry: Where replays begin of rows that change nothing else.
        stream: Residual stream after the block in the clean run at the points, ``[n, d_model]``.
        weight: What each neuron writes for an activation of 1, ``[width, d_model]``.
        norm: What follows the projection; None: nothing.
        written: What the projection writes in the clean run at the points, ``[n, d_model]``; the norm reads it.
    """

    entry: Entry
    stream: Tensor
    weight: Tensor
    norm: Callable[[Tensor], Tensor] | None
    written: Tensor

    def changed(self, clean: Tensor, points: Tensor, changes: Changes) -> Tensor:
        """The residual stream after the block in rows that change neurons, ``[m, d_model]``.

        Args:
            clean: Activations in the clean run at the points, ``[n, width]``.
            points: Point of each row, ``[m]``.
            changes: What the rows set.
        """
        step = changes.values.to(clean.dtype) - clean[points[changes.rows], changes.latents]
        if len(step) <= len(points):
            steps = step.unsqueeze(-1) * self.weight[changes.latents]
            return self.after(points, clean.new_zeros(len(points), steps.shape[-1]).index_add(0, changes.rows, steps))
        moved = clean.new_zeros(len(points), clean.shape[-1])
        return self.after(points, moved.index_put((changes.rows, changes.latents), step) @ self.weight)

    def after(self, points: Tensor, steps: Tensor) -> Tensor:
        """The stream if the projection writes other than in the clean run by ``[m, d_model]``."""
        if self.norm is not None:
            written = self.written[points]
            steps = self.norm(written + steps) - self.norm(written)
        return self.stream[points] + steps


def blocks_above(engine: ReplayEngine, models: Mapping[str, LatentModel]) -> dict[str, int]:
    """The blocks at which rows of neurons may begin, by activation name; none where dictionaries are spliced in."""
    if not all(isinstance(item, IdentityDictionary) for item in models.values()):
        return {}
    places = {name: split_layer(canonical(item.hook_point)) for name, item in models.items()}
    return {
        name: place[0] + 1
        for name, place in places.items()
        if place is not None and place[1] == MLP_ACT and engine.backend.projection(in_layer(*place)) is not None
    }


@torch.no_grad()
def find_projected(
    kept: Kept, models: Mapping[str, LatentModel], latents: Mapping[str, Tensor]
) -> dict[str, Projected]:
    """Neurons whose blocks do nothing else with them, by activation name: a few rows through each block prove it."""
    backend, found = kept.engine.backend, {}
    for name, start in blocks_above(kept.engine, models).items():
        hook_point, entry = canonical(models[name].hook_point), kept.entries[name]
        weight = backend.projection(hook_point)
        assert weight is not None, "it was there before the forward"
        spans = {other: span_of(kept.engine, models[other]) for other in entry.above}
        above = tuple(other for other, span in spans.items() if start <= span.last and not span.rests(start))
        begins = Entry(start, True, True, start < kept.engine.n_blocks, above)
        written = backend.written_by(hook_point, latents[name])
        item = Projected(begins, kept.hidden[start], weight, backend.norm_after(hook_point), written)
        if len(written) and _is_all(kept, name, hook_point, item, latents[name]):
            found[name] = item
    return found


def _is_all(kept: Kept, name: str, hook_point: str, item: Projected, clean: Tensor) -> bool:
    """Whether a block makes of random activations what is said of them."""
    rows = Rows.of(torch.arange(min(PROBED, len(clean)), device=clean.device))
    step = torch.randn(len(rows), clean.shape[-1], generator=torch.Generator().manual_seed(0)).to(clean)
    step = step * (item.stream.norm() / (step @ item.weight).norm().clamp(min=torch.finfo(clean.dtype).tiny))
    start, seen = kept.entries[name].start, list[Tensor]()
    edits: dict[str, Edit] = {
        hook_point: lambda there: (clean[rows.points] + step).reshape(there.shape),
        in_layer(start, RESID_POST): noted_last(seen),
    }
    with contextlib.suppress(AllCaptured), kept.ready():
        kept.engine.replay(kept.prefix, rows, start, kept.hidden[start][rows.points], edits, None)
    expected, eps = item.after(rows.points, step @ item.weight), torch.finfo(clean.dtype).eps
    # Some models normalise attention in float32 always. A factor or a norm that is not known of shows all the same, in
    # 16 bits too: next to a coordinate of the stream that is huge, all else would pass for rounding.
    moved = (expected - item.stream[rows.points]).abs().max()
    largest = max(1e-6, eps**0.5) * moved + max(1e-6, 8 * eps) * expected.abs()
    return bool(((seen[0].squeeze(1) - expected).abs() <= largest).all())
