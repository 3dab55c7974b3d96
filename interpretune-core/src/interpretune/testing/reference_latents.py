"""The truth about latent models: plain tensors and formulas, which an author writes without the adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from attrs import field, frozen
from torch import Tensor


@frozen(eq=False)
class ReferenceLatents:
    """What a latent model of the session must compute: ``activation((x - b_dec) w_enc + b_enc)`` and its decoder.

    Write down the weights that you had the adapter load, from where they were made: not from the adapter's object. For
    what these formulas do not cover, subclass and write ``encode`` and ``decode`` anew.

    Attributes:
        hook_point: Where the latents were trained to read.
        w_enc: ``[d_in, d_sae]``.
        b_enc: ``[d_sae]``.
        w_dec: ``[d_sae, d_out]``.
        b_dec: ``[d_out]``; give it numbers that are not 0, or nothing is found where it is forgotten.
        centred: Whether ``b_dec`` is taken from what is encoded.
        activation: The nonlinearity of the latents.
        output_hook_point: Where a transcoder writes; empty: where it reads.
        hook_points: Where it reads if at several hook points, side by side in ``d_in``; empty: at ``hook_point``.
        output_hook_points: Where it writes if at several, side by side in ``d_out``; empty: at ``output_hook_point``.
        w_skip: ``[d_in, d_out]``, what a skip connection makes of what is encoded; None: there is none.
    """

    hook_point: str
    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    centred: bool = False
    activation: Callable[[Tensor], Tensor] = field(default=torch.relu)
    output_hook_point: str = ""
    hook_points: Sequence[str] = ()
    output_hook_points: Sequence[str] = ()
    w_skip: Tensor | None = None

    @classmethod
    def random(
        cls,
        hook_point: str,
        d_in: int,
        d_sae: int,
        *,
        seed: int = 0,
        centred: bool = False,
        output_hook_point: str = "",
        hook_points: Sequence[str] = (),
        output_hook_points: Sequence[str] = (),
        d_out: int | None = None,
        skip_connection: bool = False,
    ) -> ReferenceLatents:
        """Draw weights of which none is 0, to be written in the format that the adapter loads.

        ``d_in`` is the width of all that is read, ``d_out`` of all that is written, by default the same; hook points
        and ``centred`` are as the attributes. With ``skip_connection`` there is a ``w_skip``.
        """
        draw = torch.Generator().manual_seed(seed)
        width = d_out or d_in
        return cls(
            hook_point=hook_point,
            w_enc=torch.randn(d_in, d_sae, generator=draw) / d_in**0.5,
            b_enc=0.2 * torch.randn(d_sae, generator=draw) - 0.1,
            w_dec=torch.randn(d_sae, width, generator=draw) / d_sae**0.5,
            b_dec=0.3 * torch.randn(width, generator=draw),
            w_skip=torch.randn(d_in, width, generator=draw) / d_in**0.5 if skip_connection else None,
            centred=centred,
            output_hook_point=output_hook_point,
            hook_points=hook_points,
            output_hook_points=output_hook_points,
        )

    def encode(self, activations: Tensor) -> Tensor:
        """``[..., d_in]`` to ``[..., d_sae]``."""
        centred = activations - self.b_dec if self.centred else activations
        return self.activation(centred @ self.w_enc + self.b_enc)

    def decode(self, latents: Tensor) -> Tensor:
        """``[..., d_sae]`` to ``[..., d_out]``."""
        return latents @ self.w_dec + self.b_dec

    @property
    def has_skip_connection(self) -> bool:
        """Whether what is encoded is written too, past the latents."""
        return self.w_skip is not None

    def reconstruct(self, latents: Tensor, inputs: Tensor) -> Tensor:
        """What is written: ``decode(latents)``, and what a skip connection makes of ``inputs``, ``[..., d_in]``."""
        decoded = self.decode(latents)
        return decoded if self.w_skip is None else decoded + inputs @ self.w_skip

    @property
    def read_points(self) -> tuple[str, ...]:
        """Where it reads."""
        return tuple(self.hook_points) or (self.hook_point,)

    @property
    def written_points(self) -> tuple[str, ...]:
        """Where the output is put in."""
        return tuple(self.output_hook_points) or (self.output_hook_point or self.hook_point,)
