"""A framework that rounds limits up to whole numbers, shares among them."""

import math

import interpretune as it
from tests.broken_adapters.misbehaving.sound_framework import SmallTrainer, SoundFramework


class Trainer(SmallTrainer):
    def count(self, loader):
        limit = self.cfg.limit_train_batches
        return len(loader) if limit is None else min(len(loader), math.ceil(limit))


class TakesSharesForNumbers(SoundFramework):
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")
    trainer = Trainer


adapter = TakesSharesForNumbers()
