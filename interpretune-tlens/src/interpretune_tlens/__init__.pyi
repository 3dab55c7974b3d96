from .backend import TransformerLensBackend
from .config import (
    ITLensConfig,
    ITLensCustomConfig,
    ITLensFromPretrainedConfig,
    ITLensFromPretrainedNoProcessingConfig,
    TLensGenerationConfig,
)

__all__ = [
    "ITLensConfig",
    "ITLensCustomConfig",
    "ITLensFromPretrainedConfig",
    "ITLensFromPretrainedNoProcessingConfig",
    "TLensGenerationConfig",
    "TransformerLensBackend",
]
