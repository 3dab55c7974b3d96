"""The activations of a hook point as latents of a dictionary that changes nothing: neurons, heads, whole streams."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor
from torch.nn import functional

from interpretune.activations.hook_names import canonical


@frozen
class IdentityDictionary:
    """A latent model whose latents are the coordinates of a hook point; spliced in, it leaves the model as it is.

    Attributes:
        hook_point: Where it reads and writes; hook points with several trailing dimensions are flattened.
        d_in: Width there.
    """

    hook_point: str
    d_in: int
    use_error_term = True
    """Without edits nothing is computed."""
    skips_special_tokens = False

    @property
    def name(self) -> str:
        """The canonical name of the hook point."""
        return canonical(self.hook_point)

    @property
    def output_hook_point(self) -> str:
        """The same hook point."""
        return self.hook_point

    @property
    def d_sae(self) -> int:
        """Number of latents: the width."""
        return self.d_in

    def encode(self, activations: Tensor) -> Tensor:
        """The activations."""
        return activations

    def decode(self, latents: Tensor) -> Tensor:
        """The latents."""
        return latents

    def decoder_rows(self, latents: Tensor) -> Tensor:
        """Unit vectors, ``[n]`` to ``[n, d_in]``."""
        return functional.one_hot(latents, self.d_in).to(torch.get_default_dtype())

    def dashboard_url(self) -> str | None:
        """There is none."""
        return None
