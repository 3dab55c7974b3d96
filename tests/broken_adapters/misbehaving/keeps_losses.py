"""A framework that keeps each loss, with all that it was computed from, until the training ends."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound_framework import SmallTrainer, SoundFramework


class Trainer(SmallTrainer):
    def backward(self, loss):
        super().backward(loss)
        self.losses = [*getattr(self, "losses", ()), loss]


class KeepsLosses(SoundFramework):
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")
    trainer = Trainer


adapter = KeepsLosses()
