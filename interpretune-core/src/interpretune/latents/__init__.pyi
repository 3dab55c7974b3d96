from interpretune.latents.latent_model import (
    ACTIVATION_HOOK,
    HasDecoderNorms,
    HasDecoderRows,
    HasPassingState,
    HasSave,
    HasTrainingLoss,
    HasTrainingRule,
    LatentModel,
    activation_name,
    layer_of,
)

__all__ = [
    "ACTIVATION_HOOK",
    "HasDecoderNorms",
    "HasDecoderRows",
    "HasPassingState",
    "HasSave",
    "HasTrainingLoss",
    "HasTrainingRule",
    "LatentModel",
    "activation_name",
    "layer_of",
]
