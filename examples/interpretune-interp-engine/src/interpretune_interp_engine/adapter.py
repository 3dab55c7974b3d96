"""The interp-engine adapter: the model is loaded as core loads it, and interp-engine's hooks reach into it."""

from __future__ import annotations

from typing import Any

from torch import nn

from interpretune import AdapterDeclaration, ITModule, ModelLoadError, hookimpl, load_hf_model
from interpretune_interp_engine.backend import InterpEngineBackend
from interpretune_interp_engine.library import import_interp_engine


class InterpEngineAdapter:
    """Loads a causal language model of Hugging Face and supplies the backend that edits it with interp-engine."""

    declaration = AdapterDeclaration(name="interp_engine", level="model", contract="1.0")

    @hookimpl
    def it_load_model(self, module: ITModule) -> nn.Module:
        """Load the model, which stays an ordinary torch module: interp-engine's wrapper is none, and freezes it.

        Raises:
            ModelLoadError: interp-engine is missing or of another version, or the model is no causal language model.
        """
        import_interp_engine()
        model: Any = load_hf_model(module.it_cfg)
        if model.config.is_encoder_decoder or not model.can_generate():
            raise ModelLoadError(
                f"The adapter interp_engine runs causal language models, and {type(model).__name__} is none. Name a "
                "model that AutoModelForCausalLM loads, or stack ('core',) without interp_engine."
            )
        loaded: nn.Module = model
        return loaded

    @hookimpl
    def it_create_backend(self, module: ITModule) -> InterpEngineBackend:
        """The backend whose edits interp-engine makes."""
        model: Any = module.model
        return InterpEngineBackend(model, module.datamodule.tokenizer if module.datamodule is not None else None)


adapter = InterpEngineAdapter()
