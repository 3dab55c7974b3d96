"""Gives logits in float32, whatever the model's dtype is."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class WorksInSinglePrecision(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def forward(self, module, batch):
        return super().forward(module, batch).logits.float()


adapter = WorksInSinglePrecision()
