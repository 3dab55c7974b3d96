"""Latent models of plain torch: they belong to no library, and every backend must splice them alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class RandomDictionary(nn.Module):
    """A dictionary of random ReLU latents of which a fraction is active."""

    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    w_skip: Tensor | None

    def __init__(
        self,
        hook_point: str | Sequence[str],
        width: int,
        d_sae: int = 16,
        *,
        output: str | Sequence[str] | None = None,
        skips: bool = False,
        seed: int = 0,
        linear: bool = True,
        skip_connection: bool = False,
    ) -> None:
        """Draw one.

        Args:
            hook_point: Where it reads, or several.
            width: Width of each hook point.
            d_sae: Number of latents.
            output: Where it writes, or several, in the order in which a model reaches them; None: where it reads.
            skips: Leave special tokens as they are.
            seed: Seed of its weights.
            linear: Declare that its decoder is linear.
            skip_connection: Write a linear map of what it reads as well.
        """
        super().__init__()
        reads = [hook_point] if isinstance(hook_point, str) else list(hook_point)
        writes = [output] if isinstance(output, str) else list(output or reads)
        self.hook_point, self.output_hook_point = reads[0], writes[0]
        if len(reads) > 1 or len(writes) > 1:
            self.hook_points, self.output_hook_points = reads, writes
        self.name = f"random at {', '.join(reads)}"
        d_in, d_out = len(reads) * width, len(writes) * width
        self.d_in, self.d_sae = d_in, d_sae
        self.skips_special_tokens = skips
        self.linear = linear
        draw = torch.Generator().manual_seed(seed)
        self.register_buffer("w_enc", torch.randn(d_in, d_sae, generator=draw) / d_in**0.5)
        self.register_buffer("b_enc", torch.randn(d_sae, generator=draw) * 0.2 - 0.1)
        self.register_buffer("w_dec", torch.randn(d_sae, d_out, generator=draw) / d_sae**0.5)
        self.register_buffer("b_dec", torch.randn(d_out, generator=draw) * 0.2)
        self.has_skip_connection = skip_connection
        w_skip = torch.randn(d_in, d_out, generator=draw) / d_in**0.5 if skip_connection else None
        self.register_buffer("w_skip", w_skip)

    def encode(self, activations: Tensor) -> Tensor:
        """``[batch, pos, d_in]`` to ``[batch, pos, d_sae]``."""
        return torch.relu(activations @ self.w_enc + self.b_enc)

    def decode(self, latents: Tensor, inputs: Tensor | None = None) -> Tensor:
        """``[batch, pos, d_sae]`` to ``[batch, pos, d_out]``; a skip connection reads ``inputs``, what was encoded."""
        decoded = latents @ self.w_dec + self.b_dec
        return decoded if self.w_skip is None or inputs is None else decoded + inputs @ self.w_skip

    def decoder_rows(self, latents: Tensor) -> Tensor | None:
        """What each of the given latents writes, ``[n]`` to ``[n, d_out]``."""
        return self.w_dec[latents] if self.linear else None

    def dashboard_url(self) -> None:
        """There is none."""
