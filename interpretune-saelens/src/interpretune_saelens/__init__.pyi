from .config import (
    SAELensConfig,
    SAELensCustomConfig,
    SAELensFromDiskConfig,
    SAELensFromPretrainedConfig,
    SAELensTrainConfig,
)
from .conformance import SAELensConformance
from .latent_model import SAELatentModel

__all__ = [
    "SAELatentModel",
    "SAELensConfig",
    "SAELensConformance",
    "SAELensCustomConfig",
    "SAELensFromDiskConfig",
    "SAELensFromPretrainedConfig",
    "SAELensTrainConfig",
]
