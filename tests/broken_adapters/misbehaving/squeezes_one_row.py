"""Drops the batch axis of a single row."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class SqueezesOneRow(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def forward(self, module, batch):
        return super().forward(module, batch).logits.squeeze(0)


adapter = SqueezesOneRow()
