"""Whether an edit between attention and MLP changes the residual stream, and not only what the MLP reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from interpretune.analysis.hook_names import ATTN_OUT, MLP_OUT, RESID_MID, RESID_POST, RESID_PRE, in_layer, split_layer
from interpretune.analysis.inputs import probe_inputs
from interpretune.analysis.latent_model import Edit

if TYPE_CHECKING:
    from interpretune.analysis.hooked_model import HookedModel

CLOSE = 0.7
"""Cosine between what should have been added and what was: 1 but for dropout and rounding, 0 where nothing was."""


def layers_with_middle(hooked: HookedModel, layers: Sequence[int]) -> frozenset[int]:
    """The layers in which ``resid_mid`` is the residual stream between attention and MLP.

    One forward of two tokens: attention writes a random vector, another is added at ``resid_mid``, and the MLP writes
    nothing. The first must be what came to the residual stream before ``resid_mid``, the second what came after.

    Args:
        hooked: The model.
        layers: Layers of which the model has all places that touch the residual stream.
    """
    draw = torch.Generator().manual_seed(0)
    seen: dict[str, Tensor] = {}
    drawn: dict[str, Tensor] = {}

    def noted(name: str, edit: Edit) -> Edit:
        def apply(activations: Tensor) -> Tensor:
            activations = edit(activations)
            seen[name] = activations.detach().clone()
            return activations

        return apply

    def random(name: str, like: Tensor) -> Tensor:
        drawn[name] = torch.randn(like.shape, generator=draw).to(like)
        return drawn[name]

    def at(name: str) -> Edit:
        place = (split_layer(name) or (0, ""))[1]
        if place == ATTN_OUT:
            return lambda activations: random(name, activations)
        if place == MLP_OUT:
            return torch.zeros_like
        if place == RESID_MID:

            def add(activations: Tensor) -> Tensor:
                seen[f"{name} before"] = activations.detach().clone()
                return activations + random(name, activations)

            return add
        return lambda activations: activations

    names = [in_layer(i, part) for i in layers for part in (RESID_PRE, ATTN_OUT, RESID_MID, MLP_OUT, RESID_POST)]
    with torch.no_grad(), hooked.hooked({name: noted(name, at(name)) for name in names}):
        hooked.run_model(probe_inputs(hooked.model_device), None)

    def is_real(layer: int) -> bool:
        pre, out, mid, post = (in_layer(layer, part) for part in (RESID_PRE, ATTN_OUT, RESID_MID, RESID_POST))
        before = seen[f"{mid} before"]
        return _alike(before - seen[pre], drawn[out]) and _alike(seen[post] - before, drawn[mid])

    return frozenset(filter(is_real, layers))


def _alike(found: Tensor, expected: Tensor) -> bool:
    return bool(cosine_similarity(found.float().flatten(), expected.float().flatten(), dim=0) > CLOSE)
