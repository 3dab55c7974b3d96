"""Shows activations and ignores what shall stand in their place."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class DeafBackend(SoundBackend):
    def hooked(self, edits):
        return super().hooked(
            {name: look_only(edit) if name.endswith("attn_z") else edit for name, edit in edits.items()}
        )


def look_only(edit):
    def apply(activations):
        edit(activations)
        return activations

    return apply


class IgnoresEdits(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = DeafBackend


adapter = IgnoresEdits()
