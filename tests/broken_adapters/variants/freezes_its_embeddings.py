"""Freezes the embeddings and the first block of its model."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class FreezesItsEmbeddings(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_load_model(self, module):
        model = super().it_load_model(module)
        model.get_input_embeddings().requires_grad_(False)
        return model


adapter = FreezesItsEmbeddings()
