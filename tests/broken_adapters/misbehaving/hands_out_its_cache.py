"""Remembers activations and hands out the very tensors that it remembers."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class RememberingBackend(SoundBackend):
    def __init__(self, *args):
        super().__init__(*args)
        self.remembered = {}

    def run_with_cache(self, inputs, names):
        key = (inputs.tokens.numpy().tobytes(), inputs.tokens.shape, tuple(names))
        if key not in self.remembered:
            self.remembered[key] = super().run_with_cache(inputs, names)
        logits, cache = self.remembered[key]
        return logits, dict(cache)


class HandsOutItsCache(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = RememberingBackend


adapter = HandsOutItsCache()
