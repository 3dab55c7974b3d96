"""Replaces activations of a model by the reconstruction of a latent model."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen
from torch import Tensor, where

from interpretune.activations.edits import Edit, Observer
from interpretune.activations.inputs import Points
from interpretune.errors import HookPointError
from interpretune.latents.latent_model import LatentModel, has_error_term

WhichSlots = Callable[[int, int], Tensor]
"""A mask ``[rows, length]``, bool, for a forward with this many rows and slots."""


@frozen(eq=False)
class Splice:
    """One latent model in one forward.

    With an error term, the output is ``x + decode(edited latents) - decode(latents)``. Without edits that is the
    identity and costs nothing. Gradients with respect to ``x`` then pass as through the identity.

    Attributes:
        latent_model: The latent model.
        untouched: Positions that are left unchanged, ``[batch, pos]``, bool, or a function that gives them for a
            number of rows and slots; None: no position.
        edit: Change of the latents ``[batch, pos, d_sae]``.
        see_latents: Receives the latents after the edit.
        see_at: Where ``see_latents`` is wanted, ``[n, 1, d_sae]``, in a splice that is the identity; None: everywhere.
        see_output: Receives what is written, ``[batch, pos, ...]``.
        output: Written instead of a reconstruction, ``[batch, d_out]`` at one position per row; nothing is read then.
    """

    latent_model: LatentModel
    untouched: Tensor | WhichSlots | None = None
    edit: Edit | None = None
    see_latents: Observer | None = None
    see_at: Points | None = None
    see_output: Observer | None = None
    output: Tensor | None = None

    def edits(self) -> tuple[Edit | None, Edit]:
        """Two edits: read and encode at the input's hook point, decode and write at the output's.

        The first is None if nothing is read.
        """
        given = self.output
        if given is not None:
            return None, lambda activations: given.reshape(activations.shape).to(activations.dtype)
        pending: list[tuple[Tensor | None, Tensor]] = []
        keeps_error = has_error_term(self.latent_model)
        identity = keeps_error and self.edit is None
        has_read = False

        def read(activations: Tensor) -> Tensor:
            nonlocal has_read
            has_read = True
            if identity and self.see_latents is None:
                return activations
            flat = self._checked(activations.flatten(2))
            untouched = self._untouched(flat)
            if identity and self.see_at is not None:
                flat = self.see_at.of(flat).unsqueeze(1)
                untouched = None if untouched is None else self.see_at.of(untouched).unsqueeze(1)
            latents = self.latent_model.encode(flat.detach() if keeps_error and not identity else flat)
            if untouched is not None:
                latents = latents.masked_fill(untouched.unsqueeze(-1), 0)
            clean = None
            if keeps_error and not identity:  # before the edit, which may write into the latents; a copy, as buffers go
                clean = self.latent_model.decode(latents).detach().clone()
            if self.edit is not None:
                latents = self.edit(latents.clone() if latents.requires_grad else latents)
            if self.see_latents is not None:
                self.see_latents(latents)
            if not identity:
                pending.append((clean, latents))
            return activations

        def write(activations: Tensor) -> Tensor:
            nonlocal has_read
            if not has_read:
                raise reads_after_it_writes(self.latent_model)
            has_read = False
            if not identity:
                activations = self._written(activations, *pending.pop())
            if self.see_output is not None:
                self.see_output(activations)
            return activations

        return read, write

    def _written(self, activations: Tensor, clean: Tensor | None, latents: Tensor) -> Tensor:
        flat = activations.flatten(2)
        # a copy: the latent model may hold on to what it returns, and the model may write into what it is given
        output = self.latent_model.decode(latents).to(flat.dtype, copy=True)
        if clean is not None:
            output = flat + output - clean.to(flat.dtype)
        untouched = self._untouched(flat)
        if untouched is not None:
            output = where(untouched.unsqueeze(-1), flat, output)
        return output.reshape(activations.shape)

    def _untouched(self, flat: Tensor) -> Tensor | None:
        return self.untouched(*flat.shape[:2]) if callable(self.untouched) else self.untouched

    def _checked(self, flat: Tensor) -> Tensor:
        if flat.shape[-1] != self.latent_model.d_in:
            raise HookPointError(
                f"The latent model {self.latent_model.name!r} reads {self.latent_model.d_in} numbers at "
                f"{self.latent_model.hook_point}, where this model has {flat.shape[-1]}."
            )
        return flat


def reads_after_it_writes(latent_model: LatentModel) -> HookPointError:
    """The message for a latent model whose input a forward reaches after its output."""
    return HookPointError(
        f"The latent model {latent_model.name!r} reads at {latent_model.hook_point}, which this model reaches after "
        f"{latent_model.output_hook_point}, where it writes. A latent model reads where it writes or before; are its "
        "two hook points exchanged?"
    )
