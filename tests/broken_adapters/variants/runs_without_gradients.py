"""Runs every forward without gradients."""

import torch

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class RunsWithoutGradients(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def forward(self, module, batch):
        with torch.no_grad():
            return super().forward(module, batch)


adapter = RunsWithoutGradients()
