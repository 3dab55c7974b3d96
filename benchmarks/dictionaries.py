"""Dictionaries for benchmarks, fitted in seconds: wide, sparse, and good enough that the model still works."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FittedDictionary(nn.Module):
    """ReLU latents along whitened directions of real activations; the decoder is their ridge regression.

    Attributes:
        use_error_term: Whether what it does not explain is added to what it writes.
    """

    use_error_term = False

    def __init__(
        self,
        hook_point: str,
        activations: Tensor,
        d_sae: int,
        alive: int,
        writes: tuple[str, Tensor] | None = None,
    ) -> None:
        """Fit.

        Args:
            hook_point: What it reads.
            activations: These there, ``[n, d_in]``.
            d_sae: Number of latents.
            alive: How many of them shall be active at a token, on average.
            writes: The hook point that it writes, and the activations there, ``[n, d_in]``; None: what it reads.
        """
        super().__init__()
        self.output_hook_point, outputs = (hook_point, activations) if writes is None else writes
        self.name = self.hook_point = hook_point
        self.d_in, self.d_sae, self.skips_special_tokens = activations.shape[1], d_sae, True
        draw = torch.Generator().manual_seed(0)
        mean = activations.mean(0)
        centred = activations - mean
        values, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
        whiten = axes * (values.clamp(min=0) + 1e-2 * values.mean()).rsqrt()
        white = centred @ whiten
        one, other = torch.randint(len(white), (2, d_sae), generator=draw)
        directions = nn.functional.normalize(white[one] + 0.5 * white[other], dim=-1)
        often = max(1, round(alive * len(white) / d_sae))
        thresholds = (white @ directions.T).topk(often, dim=0).values[-1] * 0.98
        weight = whiten @ directions.T
        self.w_enc = nn.Parameter(weight.T.contiguous(), requires_grad=False)
        self.b_enc = nn.Parameter(-(mean @ weight) - thresholds, requires_grad=False)
        latents = self.encode(activations)
        gram = latents @ latents.T
        gram.diagonal().add_(0.003 * gram.diagonal().mean())
        made = outputs.mean(0)
        self.w_dec = nn.Parameter(latents.T @ torch.linalg.solve(gram, outputs - made), requires_grad=False)
        self.b_dec = nn.Parameter(made, requires_grad=False)

    def encode(self, activations: Tensor) -> Tensor:
        """``[..., d_in]`` to ``[..., d_sae]``."""
        return nn.functional.linear(activations, self.w_enc, self.b_enc).relu_()

    def decode(self, latents: Tensor) -> Tensor:
        """``[..., d_sae]`` to ``[..., d_in]``."""
        return latents @ self.w_dec + self.b_dec

    def decoder_rows(self, latents: Tensor) -> Tensor:
        """Rows of the decoder."""
        return self.w_dec[latents]

    def dashboard_url(self) -> str | None:
        """There is none."""
