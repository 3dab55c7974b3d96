"""Takes the options of generation that its author knew, and no other."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter

KNOWN = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p")


class IgnoresOptionsOfGeneration(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def generate(self, module, tokens, mask, generation_kwargs):
        kept = {name: value for name, value in generation_kwargs.items() if name in KNOWN}
        return super().generate(module, tokens, mask, kept)


adapter = IgnoresOptionsOfGeneration()
