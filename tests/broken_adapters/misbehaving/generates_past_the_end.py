"""Goes on after the end token."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class GeneratesPastTheEnd(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def generate(self, module, tokens, mask, generation_kwargs):
        return super().generate(module, tokens, mask, {**generation_kwargs, "eos_token_id": -1})


adapter = GeneratesPastTheEnd()
