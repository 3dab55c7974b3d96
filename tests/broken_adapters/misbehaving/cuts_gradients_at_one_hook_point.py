"""Hands a copy without its graph to edits at one hook point."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend

PLACE = "layers.2.attn_out"


class CuttingBackend(SoundBackend):
    def hooked(self, edits):
        return super().hooked({name: cut(edit) if name == PLACE else edit for name, edit in edits.items()})


def cut(edit):
    return lambda activations: edit(activations.detach().clone())


class CutsGradientsAtOnePlace(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = CuttingBackend


adapter = CutsGradientsAtOnePlace()
