"""A framework that drops the batches that are left at the end of an epoch."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound_framework import SmallTrainer, SoundFramework


class Trainer(SmallTrainer):
    def count(self, loader):
        together = self.cfg.accumulate_grad_batches
        return super().count(loader) // together * together


class DropsTheLastAccumulation(SoundFramework):
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")
    trainer = Trainer


adapter = DropsTheLastAccumulation()
