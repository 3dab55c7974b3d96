"""Generates a few tokens, however many are asked for."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter

MOST = 4


class GeneratesAFixedNumber(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def generate(self, module, tokens, mask, generation_kwargs):
        asked = generation_kwargs.get("max_new_tokens", MOST)
        return super().generate(module, tokens, mask, {**generation_kwargs, "max_new_tokens": min(asked, MOST)})


adapter = GeneratesAFixedNumber()
