"""Turns grad mode off for everybody."""

import torch

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class TurnsGradientsOff(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_setup_module(self, module):
        torch.set_grad_enabled(False)


adapter = TurnsGradientsOff()
