"""Runs the model that was loaded last, whoever asks."""

from types import SimpleNamespace

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class KeepsTheModelOnItself(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_load_model(self, module):
        self.model = super().it_load_model(module)
        return self.model

    def forward(self, module, batch):
        ended = next(self.model.parameters()).is_meta
        return super().forward(module if ended else SimpleNamespace(model=self.model), batch)


adapter = KeepsTheModelOnItself()
