"""Keeps a buffer that is in its module's state and not in that of another."""

import torch

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class LosesState(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_load_model(self, module):
        model = super().it_load_model(module)
        self.sessions = getattr(self, "sessions", 0) + 1
        model.register_buffer(f"acme_{self.sessions}", torch.zeros(1))
        return model


adapter = LosesState()
