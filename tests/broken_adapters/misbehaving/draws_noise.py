"""Adds a little noise to its logits."""

import torch

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class DrawsNoise(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def forward(self, module, batch):
        logits = super().forward(module, batch).logits
        draw = torch.Generator()
        draw.seed()
        return logits + 1e-3 * torch.randn(logits.shape, generator=draw)


adapter = DrawsNoise()
