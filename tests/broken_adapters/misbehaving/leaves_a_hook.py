"""Leaves a hook on the model whenever activations are cached."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class CountingBackend(SoundBackend):
    def run_with_cache(self, inputs, names):
        self.model.register_forward_hook(lambda *given: None)
        return super().run_with_cache(inputs, names)


class LeavesAHook(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = CountingBackend


adapter = LeavesAHook()
