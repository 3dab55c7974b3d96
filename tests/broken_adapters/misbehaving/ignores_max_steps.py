"""A framework that counts epochs and no steps."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound_framework import SmallTrainer, SoundFramework


class Trainer(SmallTrainer):
    def is_done(self):
        return self.epoch >= max(1, self.cfg.max_epochs)

    def enough_steps(self):
        return False


class IgnoresMaxSteps(SoundFramework):
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")
    trainer = Trainer


adapter = IgnoresMaxSteps()
