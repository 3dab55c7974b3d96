"""Gives the logits of the position before the one that is asked for."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class EarlyBackend(SoundBackend):
    def run_model(self, inputs, keep, **options):
        logits = super().run_model(inputs, None, **options)
        return logits if keep is None else logits[:, keep - 1]


class OnePositionEarly(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = EarlyBackend


adapter = OnePositionEarly()
