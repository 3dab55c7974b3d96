"""Sets the default dtype of torch."""

import torch

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class SetsTheDefaultDtype(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_setup_module(self, module):
        torch.set_default_dtype(torch.float64)


adapter = SetsTheDefaultDtype()
