"""Skip connections of transcoders: linear maps past the latents, which remain in a model where all else is held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.hook_names import canonical
from interpretune.errors import AnalysisError
from interpretune.latents.latent_model import LatentModel, has_skip_connection, reconstruct, written_points

CHUNK = 64
"""Coordinates of the input whose images are made at a time: each needs room for all latents."""


@frozen(eq=False)
class SkipConnection:
    """What a transcoder writes of its input, beside what its latents write.

    Attributes:
        reads: Hook point of the input.
        weights: ``[d_in, d_out]`` by the hook point that is written.
        spliced: Tokens at which it writes, ``[pos, 1]``, bool; None: all.
    """

    reads: str
    weights: Mapping[str, Tensor]
    spliced: Tensor | None

    def written(self, activations: Tensor) -> dict[str, Tensor]:
        """What it writes of activations ``[n, pos, ...]``, ``[n, pos, d_out]`` by hook point."""
        read = activations.flatten(2)
        read = read if self.spliced is None else read * self.spliced
        return {name: read @ weight for name, weight in self.weights.items()}


@torch.no_grad()
def skip_connections(
    models: Sequence[LatentModel], clean: Mapping[str, Tensor], untouched: Sequence[Tensor | None]
) -> list[SkipConnection]:
    """The skip connections of transcoders, as their decoders show them.

    Args:
        models: The transcoders.
        clean: Activations of a prompt by hook point, ``[1, pos, ...]``.
        untouched: Tokens that each leaves alone, ``[1, pos]``; None: no token.

    Raises:
        AnalysisError: One is not linear.
    """
    found = []
    for model, left in zip(models, untouched, strict=True):
        if not has_skip_connection(model):
            continue
        reads, names = canonical(model.hook_point), [canonical(name) for name in written_points(model)]
        read = clean[reads].flatten(2)

        def of(inputs: Tensor, model: LatentModel = model) -> Tensor:
            latents = inputs.new_zeros(*inputs.shape[:2], model.d_sae)
            return reconstruct(model, latents, inputs) - reconstruct(model, latents, torch.zeros_like(inputs))

        images = torch.eye(read.shape[-1]).to(read).split(CHUNK)
        weight = torch.cat([of(part.unsqueeze(0))[0] for part in images])
        made, eps = of(read), torch.finfo(read.dtype).eps
        if not bool(((made - read @ weight).abs() <= max(1e-3, 8 * eps) * (read.abs() @ weight.abs()) + eps).all()):
            raise AnalysisError(
                f"What the decoder of {model.name!r} makes of its input is not linear. Attribution graphs follow skip "
                "connections that are linear maps."
            )
        widths = [clean[name].flatten(2).shape[-1] for name in names]
        weights = dict(zip(names, weight.split(widths, -1), strict=True))
        found.append(SkipConnection(reads, weights, None if left is None else ~left[0].unsqueeze(-1)))
    return found
