"""Batches of some size are edited one token too early where they are padded."""

import torch

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend

ROWS = 5
SIDE = -1
"""Slot of a row where there is padding: the last, or the first."""


class EarlyInLargeBatches(SoundBackend):
    def forward(self, inputs, edits, points=None, **options):
        if len(inputs) >= ROWS:
            padded = inputs.attention_mask[:, SIDE] == 0
            edits = {name: early(edit, padded) for name, edit in edits.items()}
        return super().forward(inputs, edits, points, **options)


def early(edit, padded):
    def apply(activations):
        change = edit(activations) - activations
        return activations + torch.where(padded.reshape(-1, 1, 1), change.roll(-1, dims=1), change)

    return apply


class EditsOneEarlyInLargeBatches(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = EarlyInLargeBatches


adapter = EditsOneEarlyInLargeBatches()
