"""Gives gradients of the mean of what is asked for, and not of its sum."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class AveragingBackend(SoundBackend):
    def gradients(self, inputs, *given, **named):
        run, found = super().gradients(inputs, *given, **named)
        return run, {name: value / len(inputs) for name, value in found.items()}


class AveragesGradients(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = AveragingBackend


adapter = AveragesGradients()
