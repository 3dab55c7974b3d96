"""Leaves another forward on the model whenever activations are cached."""

import functools

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class ReplacingBackend(SoundBackend):
    def run_with_cache(self, inputs, names):
        self.model.forward = functools.partial(type(self.model).forward, self.model)
        return super().run_with_cache(inputs, names)


class ReplacesTheForward(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = ReplacingBackend


adapter = ReplacesTheForward()
