"""A framework that looks at max_steps at the end of an epoch only."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound_framework import SmallTrainer, SoundFramework


class Trainer(SmallTrainer):
    def run_epoch(self):
        most, self.enough_steps = self.enough_steps, lambda: False
        super().run_epoch()
        self.enough_steps = most


class CountsStepsAfterEpochs(SoundFramework):
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")
    trainer = Trainer


adapter = CountsStepsAfterEpochs()
