"""Gives generated tokens on a device of its own choice."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class MakesTensorsElsewhere(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def generate(self, module, tokens, mask, generation_kwargs):
        result = super().generate(module, tokens, mask, generation_kwargs)
        if generation_kwargs["max_new_tokens"] == 2:
            result.sequences = result.sequences.to("meta")
        return result


adapter = MakesTensorsElsewhere()
