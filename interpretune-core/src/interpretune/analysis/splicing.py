"""Puts the reconstruction of a latent model in the place of what it reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interpretune.analysis.latent_model import Edit, LatentModel
from interpretune.errors import HookPointError


def splice(
    latent_model: LatentModel, name: str, untouched: Tensor | None, edit: Edit | None, sink: dict[str, Tensor] | None
) -> tuple[Edit, Edit]:
    """Two edits: read and encode at the input's hook point, decode and write at the output's."""
    pending: list[Tensor] = []

    def read(activations: Tensor) -> Tensor:
        flat = activations.flatten(2)
        if flat.shape[-1] != latent_model.d_in:
            raise HookPointError(
                f"The latent model {latent_model.name!r} reads {latent_model.d_in} numbers at "
                f"{latent_model.hook_point}, where this model has {flat.shape[-1]}."
            )
        latents = latent_model.encode(flat)
        if untouched is not None:
            latents = latents.masked_fill(untouched.unsqueeze(-1), 0)
        if edit is not None:
            latents = edit(latents)
        if sink is not None:
            sink[name] = latents.detach()
        pending.append(latents)
        return activations

    def write(activations: Tensor) -> Tensor:
        flat = activations.flatten(2)
        output = latent_model.decode(pending.pop()).to(flat.dtype)
        if untouched is not None:
            output = torch.where(untouched.unsqueeze(-1), flat, output)
        return output.reshape(activations.shape)

    return read, write


def in_turn(edits: Sequence[Edit]) -> Edit:
    """One edit that makes several, each on the result of the one before."""

    def apply(activations: Tensor) -> Tensor:
        for edit in edits:
            activations = edit(activations)
        return activations

    return apply
