"""Writes edited activations into the tensors that the model gave."""

import torch

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class InPlaceBackend(SoundBackend):
    def hooked(self, edits):
        return super().hooked(
            {name: in_place(edit) if name.endswith("attn_out") else edit for name, edit in edits.items()}
        )


def in_place(edit):
    def apply(activations):
        edited = edit(activations)
        if edited is activations or torch.is_grad_enabled():
            return edited
        return activations.copy_(edited)

    return apply


class EditsInPlace(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = InPlaceBackend


adapter = EditsInPlace()
