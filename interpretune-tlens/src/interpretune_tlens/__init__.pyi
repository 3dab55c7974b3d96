from .backend import TransformerLensBackend as TransformerLensBackend
from .config import (
    ITLensConfig as ITLensConfig,
    ITLensCustomConfig as ITLensCustomConfig,
    ITLensFromPretrainedConfig as ITLensFromPretrainedConfig,
    ITLensFromPretrainedNoProcessingConfig as ITLensFromPretrainedNoProcessingConfig,
    TLensGenerationConfig as TLensGenerationConfig,
)
