"""The plain Hugging Face model as a model adapter, for stacks that would otherwise get another one by default."""

from __future__ import annotations

from torch import nn

from interpretune.markers import hookimpl
from interpretune.models.loading import load_hf_model
from interpretune.plugins.declaration import AdapterDeclaration
from interpretune.session.module import ITModule


class HuggingFaceAdapter:
    """Loads the model as core does; forward, generation and backend are core's."""

    declaration = AdapterDeclaration(name="huggingface", level="model", contract="1.0")

    @hookimpl
    def it_load_model(self, module: ITModule) -> nn.Module:
        """Load a Hugging Face causal model."""
        return load_hf_model(module.it_cfg)


adapter = HuggingFaceAdapter()
