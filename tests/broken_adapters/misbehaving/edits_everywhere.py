"""Applies what is changed at one position to all."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class EverywhereBackend(SoundBackend):
    def hooked(self, edits):
        return super().hooked(
            {name: everywhere(edit) if name.endswith("resid_post") else edit for name, edit in edits.items()}
        )


def everywhere(edit):
    def apply(activations):
        change = edit(activations) - activations
        return activations + change[:, -1:]

    return apply


class EditsEverywhere(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = EverywhereBackend


adapter = EditsEverywhere()
