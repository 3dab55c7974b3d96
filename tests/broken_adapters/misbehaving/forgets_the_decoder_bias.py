"""Its decoder adds no bias."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound_latents import SoundDictionary, SoundLatentsAdapter

SHARE = 0.0
"""Of the bias that is added."""


class WithoutBias(SoundDictionary):
    def decode(self, latents, inputs=None):
        return super().decode(latents, inputs) - (1 - SHARE) * self.b_dec


class ForgetsTheDecoderBias(SoundLatentsAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="latents", contract="1.0")
    dictionary = WithoutBias


adapter = ForgetsTheDecoderBias()
