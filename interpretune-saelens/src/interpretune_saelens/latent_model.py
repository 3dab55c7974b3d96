"""A SAELens SAE or transcoder as core's latent model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sae_lens import SAE
from torch import Tensor, nn

from interpretune import LatentModelError

SKIPS_SPECIAL_TOKENS = "interpretune_skips_special_tokens"
"""Key in the metadata of SAEs trained here: they never saw special tokens and leave them as they are."""

DASHBOARD = "https://www.neuronpedia.org/{sae}/{{latent}}"


class SAELatentModel(nn.Module):
    """Wraps an SAE; the SAE itself is the attribute ``sae``.

    Attributes:
        sae: The SAELens object.
        name: Hook point and width, or the release's name.
        hook_point: ``metadata.hook_name`` of the SAE.
        output_hook_point: ``metadata.hook_name_out`` of a transcoder, else ``hook_point``.
        skips_special_tokens: See ``interpretune.analysis.LatentModel``.
        training_report: Figures of the training, where this session or an earlier one trained the SAE.
    """

    def __init__(self, sae: SAE[Any], name: str | None = None, skips_special_tokens: bool | None = None) -> None:
        super().__init__()
        metadata = sae.cfg.metadata
        if not metadata.hook_name:
            raise LatentModelError(
                f"The SAE {name or type(sae).__name__} does not say at which hook point it stands. Set "
                "metadata.hook_name in its configuration, for example 'blocks.9.hook_resid_post'."
            )
        if metadata.hook_head_index is not None:
            raise LatentModelError(
                f"The SAE at {metadata.hook_name} reads the single head {metadata.hook_head_index}; SAEs of "
                "single heads cannot be spliced here. Use one that reads all heads."
            )
        sae.turn_off_forward_pass_hook_z_reshaping()  # core flattens heads
        self.sae = sae
        self.name: str = name or f"{metadata.hook_name} ({sae.cfg.d_sae})"
        self.hook_point: str = metadata.hook_name
        self.output_hook_point: str = metadata.hook_name_out or metadata.hook_name
        self.training_report: Mapping[str, Any] = {}
        excluded = bool(metadata[SKIPS_SPECIAL_TOKENS] or metadata["exclude_special_tokens"])
        self.skips_special_tokens = excluded if skips_special_tokens is None else skips_special_tokens

    @property
    def d_in(self) -> int:
        """Width of the input."""
        return int(self.sae.cfg.d_in)

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return int(self.sae.cfg.d_sae)

    def encode(self, activations: Tensor) -> Tensor:
        """Latents ``[batch, pos, d_sae]`` of activations ``[batch, pos, d_in]``."""
        latents: Tensor = self.sae.encode(activations.to(self.sae.dtype))
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Reconstruction ``[batch, pos, d_out]`` of latents ``[batch, pos, d_sae]``."""
        output: Tensor = self.sae.decode(latents)
        return output

    def dashboard_url(self) -> str | None:
        """The latent's page at Neuronpedia, where the release has one."""
        page = self.sae.cfg.metadata.neuronpedia_id
        return DASHBOARD.format(sae=page) if page else None
