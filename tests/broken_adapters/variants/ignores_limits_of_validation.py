"""A framework that validates on everything after each epoch."""

from dataclasses import replace

import interpretune as it
from tests.broken_adapters.misbehaving.sound_framework import SmallTrainer, SoundFramework


class Trainer(SmallTrainer):
    def evaluate(self, loop, cfg):
        return super().evaluate(loop, replace(cfg, limit_val_batches=None))


class IgnoresLimitsOfValidation(SoundFramework):
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")
    trainer = Trainer


adapter = IgnoresLimitsOfValidation()
