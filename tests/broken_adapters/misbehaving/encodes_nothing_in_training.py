"""Drops all latents while it is trained."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound_latents import SoundDictionary, SoundLatentsAdapter

KEPT = 0.0


class Dropping(SoundDictionary):
    def encode(self, activations):
        latents = super().encode(activations)
        return KEPT * latents if self.training else latents


class EncodesNothingInTraining(SoundLatentsAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="latents", contract="1.0")
    dictionary = Dropping


adapter = EncodesNothingInTraining()
