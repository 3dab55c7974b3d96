"""Always takes the most probable token, whatever options of sampling it is given."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter

IGNORED = ("do_sample", "temperature", "top_k", "top_p")


class GeneratesGreedily(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def generate(self, module, tokens, mask, generation_kwargs):
        kept = {name: value for name, value in generation_kwargs.items() if name not in IGNORED}
        return super().generate(module, tokens, mask, kept)


adapter = GeneratesGreedily()
