from .config import (
    SAELensConfig,
    SAELensCustomConfig,
    SAELensFromDiskConfig,
    SAELensFromPretrainedConfig,
    SAELensTrainConfig,
)
from .latent_model import SAELatentModel

__all__ = [
    "SAELatentModel",
    "SAELensConfig",
    "SAELensCustomConfig",
    "SAELensFromDiskConfig",
    "SAELensFromPretrainedConfig",
    "SAELensTrainConfig",
]
