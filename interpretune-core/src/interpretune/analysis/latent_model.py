"""What core needs of a latent model: a sparse autoencoder, a transcoder, or any other dictionary."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

ACTIVATION_HOOK = "hook_sae_acts_post"
"""Last part of the name under which a latent model's activations are known."""

Edit = Callable[[Tensor], Tensor]
"""Takes the activations at a hook point, ``[batch, pos, ...]``, and returns what shall stand in their place."""


@runtime_checkable
class LatentModel(Protocol):
    """A dictionary of latents at a hook point of a model; plain attributes serve for the properties."""

    @property
    def name(self) -> str:
        """Name for tables and plots."""
        ...

    @property
    def hook_point(self) -> str:
        """Where the input is read, for example ``blocks.9.hook_resid_post``."""
        ...

    @property
    def output_hook_point(self) -> str:
        """Where the output is put in; the same place for an autoencoder, another for a transcoder."""
        ...

    @property
    def d_in(self) -> int:
        """Width of the input; places with several trailing dimensions (heads) are flattened to it."""
        ...

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        ...

    @property
    def skips_special_tokens(self) -> bool:
        """Whether the first token of a row, special tokens and padding stay as they are.

        The answer position is always spliced.
        """
        ...

    def encode(self, activations: Tensor) -> Tensor:
        """Activations of the latents, ``[batch, pos, d_in]`` to ``[batch, pos, d_sae]``; inactive latents are 0."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Reconstruction, ``[batch, pos, d_sae]`` to ``[batch, pos, d_out]``."""
        ...

    def dashboard_url(self) -> str | None:
        """Address of a page for each latent with the place holder ``{latent}``, where one is published."""
        ...


def activation_name(latent_model: LatentModel) -> str:
    """Name of a latent model's activations: its hook point with ``hook_sae_acts_post`` appended."""
    return f"{latent_model.hook_point}.{ACTIVATION_HOOK}"


def layer_of(hook_name: str) -> int | None:
    """The layer in a hook name, its first number between dots."""
    found = re.search(r"\.(\d+)(?=\.|$)", hook_name)
    return int(found.group(1)) if found else None
