"""Cuts the graph where an edit is made."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class DetachingBackend(SoundBackend):
    def hooked(self, edits):
        return super().hooked(
            {name: detached(edit) if name.endswith("resid_post") else edit for name, edit in edits.items()}
        )


def detached(edit):
    return lambda activations: edit(activations.detach())


class DetachesGradients(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = DetachingBackend


adapter = DetachesGradients()
