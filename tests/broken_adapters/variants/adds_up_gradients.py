"""A framework that adds up the gradients of accumulated batches and takes no mean."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound_framework import SmallTrainer, SoundFramework


class Trainer(SmallTrainer):
    def backward(self, loss):
        loss.backward()


class AddsUpGradients(SoundFramework):
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")
    trainer = Trainer


adapter = AddsUpGradients()
