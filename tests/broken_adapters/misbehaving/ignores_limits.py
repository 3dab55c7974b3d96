"""A framework that goes through all batches, whatever it is told."""

from dataclasses import replace

import interpretune as it
from tests.broken_adapters.misbehaving.sound_framework import SmallTrainer, SoundFramework


class Trainer(SmallTrainer):
    def count(self, loader):
        return len(loader)

    def evaluate(self, loop, cfg):
        limits = {f"limit_{name}_batches": None for name in ("val", "test", "predict")}
        return super().evaluate(loop, replace(cfg, **limits))


class IgnoresLimits(SoundFramework):
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")
    trainer = Trainer


adapter = IgnoresLimits()
