"""Leaves a hook that counts forwards on the model."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class CountingBackend(SoundBackend):
    def run_model(self, inputs, keep, **options):
        self.model.register_forward_hook(lambda *given: None)
        return super().run_model(inputs, keep, **options)


class LeavesAHook(SoundAdapter):
    declaration = it.AdapterDeclaration(name="zoo", level="model", contract="1.0")

    backend = CountingBackend


adapter = LeavesAHook()
