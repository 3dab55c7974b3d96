"""A framework that makes an optimizer step of every batch."""

from dataclasses import replace

import interpretune as it
from tests.broken_adapters.misbehaving.sound_framework import SmallTrainer, SoundFramework


class Trainer(SmallTrainer):
    def __init__(self, module, datamodule, cfg):
        super().__init__(module, datamodule, replace(cfg, accumulate_grad_batches=1))


class IgnoresAccumulation(SoundFramework):
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")
    trainer = Trainer


adapter = IgnoresAccumulation()
