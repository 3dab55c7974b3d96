"""A request for latent models that names no adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from interpretune.config.checked import Between, CheckedConfig, Seed
from interpretune.errors import ConfigurationError


@dataclass(kw_only=True)
class LatentRequest(CheckedConfig, checks_types=True):
    """A request for latent models, which any of the stacked adapters may supply.

    With a release: those of it that ``layers`` or ``ids`` select, or all. Without one: new latent models, trained at
    ``hook_points`` and kept in the session's ``cache_dir``.

    Attributes:
        release: Name of a published release, or a folder of saved latent models; None: train them.
        layers: Layers at which latent models are wanted.
        ids: Names of latent models in the release.
        hook: Hook point in a layer at which to train, for example ``hook_resid_post``.
        seed: Seed of the training.
        scale: Length of the training, 1.0 being the adapter's default.
    """

    release: str | None = None
    layers: Sequence[Annotated[int, Between(0)]] = ()
    ids: Sequence[str] = ()
    hook: str = "hook_resid_post"
    seed: Seed = 0
    scale: Annotated[float, Between(0)] = 1.0

    def __post_init__(self) -> None:
        self.layers, self.ids = tuple(self.layers), tuple(self.ids)
        if self.release is None and (self.ids or not self.layers):
            raise ConfigurationError(
                "A request for latent models names no release"
                + (", and ids are those of a release. " if self.ids else " and no layers. ")
                + "Give the release, or its folder; or layers, at which latent models are trained."
            )
        if self.layers and self.ids:
            raise ConfigurationError("A request for latent models chooses by layers and by ids. Leave one out.")

    @property
    def hook_points(self) -> tuple[str, ...]:
        """Hook points at which to train."""
        return tuple(f"blocks.{layer}.{self.hook}" for layer in self.layers)
