"""Configuration of SAEs: published, from disk, custom, and trained on the session's activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpretune import CheckedConfig, ITConfig, Positive, Seed

if TYPE_CHECKING:
    from sae_lens import SAEConfig


@dataclass(kw_only=True)
class SAELensSpliceConfig(CheckedConfig, checks_types=True):
    """What all kinds of SAEs share.

    Attributes:
        skips_special_tokens: Leave the first token of a row, special tokens and padding unspliced; None: True
            for SAEs whose metadata say that they were trained without special tokens (those of ``SAELensTrainConfig``,
            and those of SAELens with ``exclude_special_tokens``), False for all others.
        alias: Its name among several SAEs that read at one hook point, a part of the name of its activations; None: it
            is alone there.
    """

    skips_special_tokens: bool | None = None
    alias: str | None = None


@dataclass
class SAELensFromPretrainedConfig(SAELensSpliceConfig, checks_types=True):
    """A published SAE.

    Attributes:
        release: Release in SAELens's directory, for example ``gpt2-small-hook-z-kk``.
        sae_id: SAE of the release, for example ``blocks.9.hook_z``.
        dtype: Its dtype.
    """

    release: str
    sae_id: str
    dtype: str = "float32"


@dataclass
class SAELensFromDiskConfig(SAELensSpliceConfig, checks_types=True):
    """An SAE that SAELens saved.

    Attributes:
        path: Folder with ``cfg.json`` and ``sae_weights.safetensors``.
        dtype: Its dtype; None: as saved.
    """

    path: str | Path
    dtype: str | None = None


@dataclass
class SAELensCustomConfig(SAELensSpliceConfig, checks_types=True):
    """An SAE with fresh weights.

    A configuration for training (``StandardTrainingSAEConfig``, ``TopKTrainingSAEConfig``, ..., or a dictionary with
    options that only those have, such as ``l1_coefficient``) gives a SAELens ``TrainingSAE``, which a session trains
    with SAELens's own loss: ``ITConfig(train_latent_models=True)`` with a ``LatentTrainingModule``.

    Attributes:
        cfg: A SAELens configuration, or its dictionary with ``architecture``; ``metadata`` needs ``hook_name``.
        seed: Seed of the weights.
        dead_feature_window: A latent that was inactive in more training steps than that counts as dead in losses that
            revive dead latents.
    """

    cfg: SAEConfig | dict[str, Any]
    seed: Seed = 0
    dead_feature_window: int = 1000


@dataclass
class SAELensTrainConfig(SAELensSpliceConfig, checks_types=True):
    """An SAE that SAELens's trainer fits to the session's activations, once; later sessions load it from the cache.

    Activations come from the training batches. The first token of a row, special tokens and padding are left out, and
    the SAE leaves them alone when it is spliced: an SAE trained for a minute would destroy the huge activation of the
    first token, and with it everything that follows.

    Attributes:
        hook_name: Hook point, for example ``blocks.15.hook_resid_post``.
        d_sae: Number of latents.
        architecture: Architecture of SAELens's training SAE.
        architecture_args: Further arguments of its configuration; None: those that suit ``standard``.
        buffer_samples: Most activations to collect.
        answer_repeats: How often activations at the answer position are repeated: there are few of them, and they are
            what analyses look at.
        training_steps: Steps of the trainer.
        batch_size: Activations in a step.
        lr: Learning rate.
        trainer_args: Further arguments of ``sae_lens.config.SAETrainerConfig``; None: those that suit short runs.
        seed: Seed of weights and order.
        cache_dir: Where trained SAEs are kept; None: see ``interpretune.cache_root``.
    """

    hook_name: str
    d_sae: Positive = 1024
    architecture: str = "standard"
    architecture_args: dict[str, Any] | None = None
    buffer_samples: Positive = 60_000
    answer_repeats: Positive = 8
    training_steps: Positive = 600
    batch_size: Positive = 512
    lr: float = 2e-3
    trainer_args: dict[str, Any] | None = None
    seed: Seed = 0
    cache_dir: str | Path | None = None

    @property
    def sae_options(self) -> dict[str, Any]:
        """Arguments of the training SAE's configuration."""
        if self.architecture_args is not None or self.architecture != "standard":
            return self.architecture_args or {}
        return {"l1_coefficient": 1.5, "l1_warm_up_steps": min(80, self.training_steps // 4), "decoder_init_norm": 0.1}

    @property
    def trainer_options(self) -> dict[str, Any]:
        """Arguments of the trainer's configuration beside sizes and the learning rate."""
        if self.trainer_args is not None:
            return self.trainer_args
        return {"lr_warm_up_steps": min(20, self.training_steps // 4), "lr_decay_steps": self.training_steps * 2 // 5}


SAECfg = SAELensFromPretrainedConfig | SAELensFromDiskConfig | SAELensCustomConfig | SAELensTrainConfig


@dataclass(kw_only=True)
class SAELensConfig(ITConfig, checks_types=True):
    """Module configuration with SAEs.

    Attributes:
        sae_cfgs: One entry for each SAE.
    """

    sae_cfgs: Sequence[SAECfg] = ()
