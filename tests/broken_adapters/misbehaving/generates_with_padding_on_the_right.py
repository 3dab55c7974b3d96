"""Generates from rows padded on the right."""

import interpretune as it
from interpretune.models.padding import mask_of, tokens_of
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class GeneratesWithPaddingOnTheRight(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_generate(self, module, batch, generation_kwargs):
        return self.generate(module, tokens_of(batch)[1], mask_of(batch), generation_kwargs)


adapter = GeneratesWithPaddingOnTheRight()
