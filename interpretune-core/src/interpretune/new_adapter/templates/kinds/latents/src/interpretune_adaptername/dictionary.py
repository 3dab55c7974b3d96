"""A dictionary of latents with a ReLU encoder and a linear decoder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

WEIGHTS = "weights.safetensors"
ABOUT = "adapter_name.json"


class Dictionary(nn.Module):
    """``latents = relu((x - b_dec) W_enc + b_enc)``, and ``x`` is about ``latents W_dec + b_dec``.

    Attributes:
        hook_point: Where it reads.
        output_hook_point: Where it writes; a transcoder would write elsewhere, a crosscoder would have ``hook_points``
            and ``output_hook_points`` too (``interpretune.latents.HasHookPoints``), and a decoder that also reads its
            input ``has_skip_connection`` (``interpretune.latents.HasSkipConnection``). One that is
            loaded beside another at its hook point needs an ``alias`` (``interpretune.latents.HasAlias``).
        d_in: Width of what it reads and writes.
        d_sae: Number of latents.
        name: Its name in tables and plots.
        skips_special_tokens: Whether the first token, special tokens and padding are left as they are.
    """

    skips_special_tokens = False

    def __init__(self, hook_point: str, d_in: int, d_sae: int, *, seed: int = 0) -> None:
        super().__init__()
        self.hook_point = self.output_hook_point = hook_point
        self.d_in, self.d_sae = d_in, d_sae
        self.name = f"adapter_name/{hook_point}"
        # a generator of its own: the global one belongs to the user
        directions = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed))
        directions /= directions.norm(dim=-1, keepdim=True)
        self.w_enc = nn.Parameter(directions.T.clone())
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.w_dec = nn.Parameter(directions)
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    def encode(self, activations: Tensor) -> Tensor:
        """Latents ``[..., d_sae]`` of activations ``[..., d_in]``; inactive ones are 0."""
        centred = activations.to(self.w_enc.dtype) - self.b_dec
        return torch.relu(centred @ self.w_enc + self.b_enc)

    def decode(self, latents: Tensor) -> Tensor:
        """Reconstruction ``[..., d_in]`` of latents ``[..., d_sae]``."""
        return latents @ self.w_dec + self.b_dec

    def decoder_rows(self, latents: Tensor) -> Tensor:
        """What latents ``[n]`` write for an activation of 1, ``[n, d_in]``; only where the decoder is linear.

        With it, ablating a latent decodes nothing again.
        """
        return self.w_dec[latents]

    def decoder_norms(self) -> Tensor:
        """Norms of what the latents write, ``[d_sae]``; the sparsity penalty of a training weighs latents by them."""
        return self.w_dec.norm(dim=-1)

    def dashboard_url(self) -> str | None:
        """Address of a page for each latent with the placeholder ``{latent}``, where there is one."""
        return None

    def save_to(self, folder: Path) -> None:
        """Write everything that ``load_dictionary`` needs into a folder."""
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)
        about = {"hook_point": self.hook_point, "d_in": self.d_in, "d_sae": self.d_sae}
        (folder / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
