"""The nnsight adapter: the model is loaded as core loads it, and nnsight reaches into it."""

from __future__ import annotations

from typing import Any

from torch import nn

from interpretune import AdapterDeclaration, ITModule, ModelLoadError, hookimpl, load_hf_model
from interpretune_nnsight.backend import NNsightBackend
from interpretune_nnsight.library import import_nnsight


class NNsightAdapter:
    """Loads a causal language model of Hugging Face and supplies the backend that edits it with nnsight."""

    declaration = AdapterDeclaration(name="nnsight", level="model", contract="1.0")

    @hookimpl
    def it_load_model(self, module: ITModule) -> nn.Module:
        """Load the model, which stays an ordinary torch module: nnsight's wrapper is none, and could not be trained.

        Raises:
            ModelLoadError: nnsight is missing or of another version, or the model is no causal language model.
        """
        import_nnsight()
        model: Any = load_hf_model(module.it_cfg)
        if model.config.is_encoder_decoder or not model.can_generate():
            raise ModelLoadError(
                f"The adapter nnsight runs causal language models, and {type(model).__name__} is none. Name a model "
                "that AutoModelForCausalLM loads, or stack ('core',) without nnsight."
            )
        loaded: nn.Module = model
        return loaded

    @hookimpl
    def it_create_backend(self, module: ITModule) -> NNsightBackend:
        """The backend whose edits nnsight makes."""
        model: Any = module.model
        return NNsightBackend(model, module.datamodule.tokenizer if module.datamodule is not None else None)


adapter = NNsightAdapter()
