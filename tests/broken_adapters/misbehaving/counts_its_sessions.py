"""Marks its model with the time at which it was loaded."""

import time

import torch

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class CountsItsSessions(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_load_model(self, module):
        model = super().it_load_model(module)
        model.register_buffer("acme_loaded", torch.tensor(time.time(), dtype=torch.float64))
        return model


adapter = CountsItsSessions()
