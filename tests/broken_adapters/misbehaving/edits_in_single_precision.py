"""Makes edits of half-precision activations in float32, "to be exact", and rounds what comes of it."""

import torch

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend

PLACES = ""
ROUNDS = True
HALVES = (torch.bfloat16, torch.float16)


class PreciseBackend(SoundBackend):
    def hooked(self, edits):
        return super().hooked({name: precise(edit) if name.endswith(PLACES) else edit for name, edit in edits.items()})


def precise(edit):
    def apply(activations):
        if activations.dtype not in HALVES:
            return edit(activations)
        edited = edit(activations.float())
        return edited.to(activations.dtype) if ROUNDS else edited

    return apply


class EditsInSinglePrecision(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = PreciseBackend


adapter = EditsInSinglePrecision()
