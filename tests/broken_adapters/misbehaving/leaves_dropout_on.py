"""Leaves the model in train mode."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class LeavesDropoutOn(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_load_model(self, module):
        return super().it_load_model(module).train()


adapter = LeavesDropoutOn()
