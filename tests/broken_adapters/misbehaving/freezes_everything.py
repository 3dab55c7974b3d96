"""Freezes its model: analyses need no gradients of weights."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class FreezesEverything(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_load_model(self, module):
        return super().it_load_model(module).requires_grad_(False)


adapter = FreezesEverything()
