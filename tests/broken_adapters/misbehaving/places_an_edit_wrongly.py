"""Takes what the MLP of a block reads for what it writes, and the other way round."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class MisplacedBackend(SoundBackend):
    def hooked(self, edits):
        wrong = {"layers.1.mlp_in": "layers.1.mlp_out", "layers.1.mlp_out": "layers.1.mlp_in"}
        return super().hooked({wrong.get(name, name): edit for name, edit in edits.items()})


class PlacesAnEditWrongly(SoundAdapter):
    declaration = it.AdapterDeclaration(name="zoo", level="model", contract="1.0")

    backend = MisplacedBackend


adapter = PlacesAnEditWrongly()
