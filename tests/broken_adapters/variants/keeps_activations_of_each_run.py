"""A backend that keeps what it cached, in a list that all of them share."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class KeepingBackend(SoundBackend):
    caches = []  # noqa: RUF012

    def run_with_cache(self, inputs, names):
        logits, cache = super().run_with_cache(inputs, names)
        self.caches.append(tuple(cache.values()))
        return logits, cache


class KeepsActivationsOfEachRun(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = KeepingBackend


adapter = KeepsActivationsOfEachRun()
