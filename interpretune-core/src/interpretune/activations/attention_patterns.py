"""Checks by forwards that attention patterns are what attention mixes values by, and that edits reach them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interpretune.activations.block_parts import COMBINED, REMAINDER
from interpretune.activations.eager import run_eagerly
from interpretune.activations.edits import Edit
from interpretune.activations.hook_names import ATTN_Z, in_layer, split_layer
from interpretune.activations.inputs import probe_inputs
from interpretune.system.torch_state import eval_mode

if TYPE_CHECKING:
    from interpretune.activations.hooked_model import HookedModel


@torch.no_grad()
def patterns_as_named(hooked: HookedModel, names: Sequence[str]) -> frozenset[str]:
    """The attention patterns among those named that are mixed with values, and edited there.

    One forward of four tokens: they attend by nothing, by random numbers, by others, and by the sum of both. What the
    heads return must be nothing, and for the sum what it is for the others together. In another forward, patterns that
    edits hand back as they are must leave the logits as they are.
    """
    draw = torch.Generator().manual_seed(0)
    seen: dict[str, Tensor] = {}
    written: set[str] = set()
    heads = {name: in_layer((split_layer(name) or (0, ""))[0], ATTN_Z) for name in names}
    there = set(hooked.hook_point_names())
    heads = {name: point for name, point in heads.items() if point in there}

    def write(name: str) -> Edit:
        def apply(pattern: Tensor) -> Tensor:
            if pattern.shape[:2] != (1, len(COMBINED)) or pattern.shape[-1] != len(COMBINED):
                return pattern
            written.add(name)
            shares = torch.rand(2, pattern[0, 0].numel(), generator=draw)
            return (COMBINED @ shares).reshape(pattern.shape).to(pattern)

        return apply

    def note(name: str) -> Edit:
        def keep(activations: Tensor) -> Tensor:
            seen[name] = activations.flatten(2)[0].double().cpu()
            return activations

        return keep

    def returned(pattern: Tensor) -> Tensor:
        return pattern.clone()

    inputs = probe_inputs(hooked.model_device, len(COMBINED))
    with eval_mode(hooked.model):
        with run_eagerly(hooked.model):
            plain = hooked.run_model(inputs, None)
        with hooked.hooked(dict.fromkeys(heads, returned)):
            same = hooked.run_model(inputs, None)
        with hooked.hooked({name: write(name) for name in heads} | {point: note(point) for point in heads.values()}):
            hooked.run_model(inputs, None)
    tolerance = max(1e-4, 8 * torch.finfo(plain.dtype).eps) * float(plain.abs().max())
    if not float((same - plain).abs().max()) <= tolerance:
        return frozenset()
    return frozenset(name for name, point in heads.items() if name in written and _mixes(seen.get(point)))


def _mixes(returned: Tensor | None) -> bool:
    """Whether heads returned nothing, two vectors, and their sum."""
    if returned is None or len(returned) != len(COMBINED) or not bool(returned.isfinite().all()):
        return False
    nothing, one, other, both = returned
    size = float(both.norm())
    return (
        size > 0 and float(nothing.norm()) < REMAINDER * size and float((both - one - other).norm()) < REMAINDER * size
    )
