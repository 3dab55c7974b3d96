"""Divides logits by a temperature of its own."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class ScalesItsLogits(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def forward(self, module, batch):
        return super().forward(module, batch).logits / 0.7


adapter = ScalesItsLogits()
