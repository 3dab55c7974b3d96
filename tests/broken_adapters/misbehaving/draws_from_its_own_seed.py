"""Samples from a generator of its own, so that the user's seed has no say."""

import torch

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter

SEED = 0


class DrawsFromItsOwnSeed(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def generate(self, module, tokens, mask, generation_kwargs):
        with torch.random.fork_rng():
            torch.manual_seed(SEED) if SEED is not None else torch.seed()
            return super().generate(module, tokens, mask, generation_kwargs)


adapter = DrawsFromItsOwnSeed()
