"""A SAELens SAE or transcoder as core's latent model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from sae_lens import SAE, BatchTopKTrainingSAE, SkipTranscoder, TrainingSAE
from sae_lens.saes.sae import TrainCoefficientConfig, TrainStepInput
from torch import Tensor, nn

from interpretune import LatentModelError

SKIPS_SPECIAL_TOKENS = "interpretune_skips_special_tokens"
"""Key in the metadata of SAEs trained here: they never saw special tokens and leave them as they are."""

SCALED_BY_TRAINER = ("expected_average_only_in", "covariance_whitening")
"""Normalisations that SAELens's trainer makes outside of the SAE, and folds into its weights at the end."""

NORMALIZES = ("constant_norm_rescale", "layer_norm")
"""Normalisations that decoding undoes with what encoding noted."""

NOTED_BY_ENCODE = ("ln_mu", "ln_std", "x_norm_coeff")

LINEAR = (
    "StandardSAE",
    "GatedSAE",
    "JumpReLUSAE",
    "TopKSAE",
    "StandardTrainingSAE",
    "GatedTrainingSAE",
    "JumpReLUTrainingSAE",
    "TopKTrainingSAE",
    "BatchTopKTrainingSAE",
    "Transcoder",
    "JumpReLUTranscoder",
    "SkipTranscoder",
    "JumpReLUSkipTranscoder",
)
"""SAELens classes whose decoder is ``latents @ W_dec + b_dec``, and a linear map of the input in some."""

DASHBOARD = "https://www.neuronpedia.org/{sae}/{{latent}}"


class SAELatentModel(nn.Module):
    """Wraps an SAE; the SAE itself is the attribute ``sae``.

    A session can train it (``ITConfig(train_latent_models=True)`` and ``LatentTrainingModule``): a SAELens
    ``TrainingSAE`` with its own loss, any other with that of the module.

    Attributes:
        sae: The SAELens object.
        name: Hook point and width, or the release's name.
        hook_point: ``metadata.hook_name`` of the SAE.
        output_hook_point: ``metadata.hook_name_out`` of a transcoder, else ``hook_point``.
        skips_special_tokens: See ``interpretune.analysis.LatentModel``.
        alias: Its name among several that read at one hook point, or None.
        training_report: Figures of the training, where this session or an earlier one trained the SAE.
    """

    steps_since_active: Tensor
    passing_state: ClassVar[frozenset[str]] = frozenset({*NOTED_BY_ENCODE, "training_report"})

    def __init__(
        self,
        sae: SAE[Any],
        name: str | None = None,
        skips_special_tokens: bool | None = None,
        dead_feature_window: int = 1000,
        alias: str | None = None,
    ) -> None:
        """Wrap an SAE.

        Args:
            sae: The SAE.
            name: Its name; None: hook point and width.
            skips_special_tokens: None: what its metadata say.
            dead_feature_window: A latent that was inactive in more training steps than that counts as dead in losses
                that revive dead latents.
            alias: Its name among several that read at one hook point; None: it is alone there.

        Raises:
            LatentModelError: The SAE cannot be spliced or, if it is one to be trained, cannot be trained in a session.
        """
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
        if isinstance(sae, TrainingSAE):
            if sae.cfg.normalize_activations in SCALED_BY_TRAINER:
                raise LatentModelError(
                    f"The SAE at {metadata.hook_name} has normalize_activations={sae.cfg.normalize_activations!r}, "
                    "which only SAELens's trainer can do: it measures the activations first, and changes the weights "
                    "at the end. Use SAELensTrainConfig, which runs that trainer, or normalize_activations='none' or "
                    "'layer_norm'."
                )
            self.register_buffer("steps_since_active", torch.zeros(sae.cfg.d_sae, dtype=torch.long))
        self.dead_feature_window = dead_feature_window
        self.alias = alias
        sae.turn_off_forward_pass_hook_z_reshaping()  # core flattens heads
        self.sae = sae
        self.name: str = name or f"{metadata.hook_name} ({sae.cfg.d_sae})"
        self.hook_point: str = metadata.hook_name
        self.output_hook_point: str = metadata.hook_name_out or metadata.hook_name
        self.training_report: Mapping[str, Any] = {}
        noted = metadata[SKIPS_SPECIAL_TOKENS]
        excluded = bool(metadata["exclude_special_tokens"] if noted is None else noted)
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
        """Latents ``[batch, pos, d_sae]`` of activations ``[batch, pos, d_in]``, each token for itself.

        An SAE that keeps the largest latents of a whole batch while it is trained (BatchTopK, Matryoshka) is spliced in
        the form in which it is saved: latents above the threshold that training has found.
        """
        if not isinstance(self.sae, BatchTopKTrainingSAE):
            return self._encode_by_sae(activations)
        pre = self.sae.hook_sae_acts_pre(self.sae.process_sae_in(activations) @ self.sae.W_enc + self.sae.b_enc)
        if self.sae.cfg.rescale_acts_by_decoder_norm:
            pre = pre * self.sae.W_dec.norm(dim=-1)
        above = pre > self.sae.topk_threshold.to(pre.dtype)
        latents: Tensor = self.sae.hook_sae_acts_post(pre.relu() * above)
        return latents

    def encode_in_training(self, activations: Tensor) -> Tensor | None:
        """Latents of an SAE that is trained by a rule over all tokens together; None where that is ``encode``."""
        return self._encode_by_sae(activations) if isinstance(self.sae, BatchTopKTrainingSAE) else None

    def _encode_by_sae(self, activations: Tensor) -> Tensor:
        latents: Tensor = self.sae.encode(activations.to(self.sae.dtype))
        return latents.to_dense() if latents.is_sparse else latents

    @property
    def has_skip_connection(self) -> bool:
        """Whether it is a skip transcoder, which writes a linear map of its input beside what its latents write."""
        return isinstance(self.sae, SkipTranscoder)

    def decode(self, latents: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Reconstruction ``[batch, pos, d_out]``.

        Args:
            latents: ``[batch, pos, d_sae]``.
            inputs: What was encoded, ``[batch, pos, d_in]``; a skip connection reads it.
        """
        noted = {name: getattr(self.sae, name) for name in NOTED_BY_ENCODE if hasattr(self.sae, name)}
        output: Tensor = self.sae.decode(latents)
        for name, value in noted.items():  # a decoder forgets the normalisation that it has undone
            setattr(self.sae, name, value)
        if inputs is not None and isinstance(self.sae, SkipTranscoder):
            output = output + inputs.to(output.dtype) @ self.sae.W_skip.T
        return output

    def decoder_rows(self, latents: Tensor) -> Tensor | None:
        """Rows of ``W_dec``, ``[n, d_out]``; None where decoding undoes a normalisation or rescales latents."""
        cfg = self.sae.cfg
        rescales = getattr(cfg, "rescale_acts_by_decoder_norm", False)
        if type(self.sae).__name__ not in LINEAR or cfg.normalize_activations in NORMALIZES or rescales:
            return None
        rows: Tensor = self.sae.W_dec[latents]
        return rows

    @property
    def use_error_term(self) -> bool:
        """Whether the SAE adds what it fails to reconstruct (SAELens's ``use_error_term``)."""
        return bool(self.sae.use_error_term)

    def training_loss(self, activations: Tensor, targets: Tensor, step: int) -> Mapping[str, Tensor] | None:
        """The terms of SAELens's own loss for a ``TrainingSAE``; None for any other SAE.

        Coefficients are warmed up over the optimizer steps as SAELens's trainer does it.

        Args:
            activations: ``[n, d_in]``.
            targets: The same: training SAEs are autoencoders.
            step: Optimizer steps done.
        """
        if not isinstance(self.sae, TrainingSAE):
            return None
        output = self.sae.training_forward_pass(
            TrainStepInput(
                sae_in=activations.to(self.sae.dtype),
                coefficients={name: _warmed_up(value, step) for name, value in self.sae.get_coefficients().items()},
                dead_neuron_mask=self.steps_since_active > self.dead_feature_window,
                n_training_steps=step,
                is_logging_step=False,
            )
        )
        with torch.no_grad():
            active = output.feature_acts.bool().sum(0)
            self.steps_since_active += 1
            self.steps_since_active[active.to_dense() > 0] = 0
        losses: Mapping[str, Tensor] = output.losses
        return losses

    def decoder_norms(self) -> Tensor:
        """Norms of the rows of the decoder, ``[d_sae]``."""
        norms: Tensor = self.sae.W_dec.norm(dim=-1)
        return norms

    def save_to(self, folder: Path) -> None:
        """Write the SAE as SAELens does, for inference; ``SAELensFromDiskConfig(path=folder)`` loads it."""
        self.sae.cfg.metadata[SKIPS_SPECIAL_TOKENS] = self.skips_special_tokens
        if isinstance(self.sae, TrainingSAE):
            self.sae.save_inference_model(folder)
        else:
            self.sae.save_model(folder)

    def dashboard_url(self) -> str | None:
        """The latent's page at Neuronpedia, where the release has one."""
        page = self.sae.cfg.metadata.neuronpedia_id
        return DASHBOARD.format(sae=page) if page else None


def _warmed_up(coefficient: float | TrainCoefficientConfig, step: int) -> float:
    """A coefficient that rises linearly from 0 in its first steps."""
    if not isinstance(coefficient, TrainCoefficientConfig):
        return coefficient
    return coefficient.value * min(1.0, step / coefficient.warm_up_steps if coefficient.warm_up_steps > 0 else 1.0)
