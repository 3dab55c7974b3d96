"""Takes the decoder's bias from all activations, whether its dictionaries were trained so or not."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound_latents import SoundDictionary, SoundLatentsAdapter

CENTRED = True


class Centring(SoundDictionary):
    def encode(self, activations):
        self.centred = CENTRED
        return super().encode(activations)


class CentresWhatWasNotCentred(SoundLatentsAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="latents", contract="1.0")
    dictionary = Centring


adapter = CentresWhatWasNotCentred()
