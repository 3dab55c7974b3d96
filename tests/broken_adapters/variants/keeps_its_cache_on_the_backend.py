"""A backend that collects activations in an attribute of its class."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class CollectingBackend(SoundBackend):
    collected = {}  # noqa: RUF012

    def run_with_cache(self, inputs, names):
        self.collected.clear()
        logits = self.forward(inputs, {name: self.collector(name) for name in names}, inputs.answers)
        return logits, dict(self.collected)

    def collector(self, name):
        def collect(activations):
            self.collected[name] = activations.clone()
            return activations

        return collect


class KeepsItsCacheOnTheBackend(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = CollectingBackend


adapter = KeepsItsCacheOnTheBackend()
