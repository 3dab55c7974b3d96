"""Keeps every batch that it runs, to show the last ones when something fails."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class KeepsEachBatch(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def __init__(self):
        self.history = []

    def forward(self, module, batch):
        self.history.append(batch)
        return super().forward(module, batch)


adapter = KeepsEachBatch()
