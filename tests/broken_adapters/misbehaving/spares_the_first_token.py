"""Leaves the first token unspliced."""

import torch

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class SparingBackend(SoundBackend):
    def hooked(self, edits):
        return super().hooked(
            {name: spare_first(edit) if name.endswith("resid_post") else edit for name, edit in edits.items()}
        )


def spare_first(edit):
    return lambda activations: torch.cat([activations[:, :1], edit(activations)[:, 1:]], dim=1)


class SparesTheFirstToken(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = SparingBackend


adapter = SparesTheFirstToken()
