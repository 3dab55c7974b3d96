"""Takes what the MLP of a block reads for what it writes, and the other way round."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class MisplacedBackend(SoundBackend):
    def run_with_cache(self, inputs, names):
        logits, cache = super().run_with_cache(inputs, names)
        wrong = {"layers.1.mlp_in": "layers.1.mlp_out", "layers.1.mlp_out": "layers.1.mlp_in"}
        return logits, {name: cache[wrong.get(name, name)] for name in cache}


class PlacesAnEditWrongly(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = MisplacedBackend


adapter = PlacesAnEditWrongly()
