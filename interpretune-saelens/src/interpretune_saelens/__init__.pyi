from .config import (
    SAELensConfig as SAELensConfig,
    SAELensCustomConfig as SAELensCustomConfig,
    SAELensFromDiskConfig as SAELensFromDiskConfig,
    SAELensFromPretrainedConfig as SAELensFromPretrainedConfig,
    SAELensTrainConfig as SAELensTrainConfig,
)
from .conformance import SAELensConformance as SAELensConformance
from .latent_model import SAELatentModel as SAELatentModel
