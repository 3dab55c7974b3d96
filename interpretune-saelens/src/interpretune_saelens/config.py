"""Configuration of SAEs: published, from disk, custom, and trained on the session's activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpretune import ITConfig

if TYPE_CHECKING:
    from sae_lens import SAEConfig


@dataclass(kw_only=True)
class SAELensSpliceConfig:
    """What all kinds of SAEs share.

    Attributes:
        skips_special_tokens: Leave the first token of a row, special tokens and padding unspliced; None: True
            for SAEs that ``SAELensTrainConfig`` trained, False for all others, which SAELens itself splices everywhere.
    """

    skips_special_tokens: bool | None = None


@dataclass
class SAELensFromPretrainedConfig(SAELensSpliceConfig):
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
class SAELensFromDiskConfig(SAELensSpliceConfig):
    """An SAE that SAELens saved.

    Attributes:
        path: Folder with ``cfg.json`` and ``sae_weights.safetensors``.
        dtype: Its dtype; None: as saved.
    """

    path: str | Path
    dtype: str | None = None


@dataclass
class SAELensCustomConfig(SAELensSpliceConfig):
    """An SAE with fresh weights.

    Attributes:
        cfg: A SAELens configuration, or its dictionary with ``architecture``; ``metadata`` needs ``hook_name``.
        seed: Seed of the weights.
    """

    cfg: SAEConfig | dict[str, Any]
    seed: int = 0


@dataclass
class SAELensTrainConfig(SAELensSpliceConfig):
    """An SAE that SAELens's trainer fits to the session's activations, once; later sessions load it from the cache.

    Activations come from the training batches. The first token of a row, special tokens and padding are left out, and
    the SAE leaves them alone when it is spliced.

    Attributes:
        hook_name: Hook point, for example ``blocks.15.hook_resid_post``.
        d_sae: Number of latents.
        architecture: Architecture of SAELens's training SAE.
        architecture_args: Further arguments of its configuration.
        training_samples: Activations to train on, repeats included.
        buffer_samples: Most activations to keep in memory; they are repeated in another order until
            ``training_samples`` is reached.
        batch_size: Activations in a step.
        lr: Learning rate.
        trainer_args: Further arguments of ``sae_lens.config.SAETrainerConfig``.
        seed: Seed of weights and order.
        cache_dir: Where trained SAEs are kept; None: see ``interpretune.cache_root``.
    """

    hook_name: str
    d_sae: int = 2048
    architecture: str = "standard"
    architecture_args: dict[str, Any] = field(default_factory=dict)
    training_samples: int = 400_000
    buffer_samples: int = 80_000
    batch_size: int = 1024
    lr: float = 1e-3
    trainer_args: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    cache_dir: str | Path | None = None


SAECfg = SAELensFromPretrainedConfig | SAELensFromDiskConfig | SAELensCustomConfig | SAELensTrainConfig


@dataclass(kw_only=True)
class SAELensConfig(ITConfig):
    """Module configuration with SAEs.

    Attributes:
        sae_cfgs: One entry for each SAE.
    """

    sae_cfgs: Sequence[SAECfg] = ()
