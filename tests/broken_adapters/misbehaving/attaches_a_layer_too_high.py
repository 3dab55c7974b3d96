"""Counts layers from 1 where the dictionaries count them from 0."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound_latents import SoundLatentsAdapter


class AttachesALayerTooHigh(SoundLatentsAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="latents", contract="1.0")
    places = ("layers.1.resid_post", "layers.2.resid_post")


adapter = AttachesALayerTooHigh()
