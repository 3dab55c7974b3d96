"""A framework that goes on in evaluation mode after the first validation."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound_framework import SmallTrainer, SoundFramework


class Trainer(SmallTrainer):
    def evaluate(self, loop, cfg):
        result = super().evaluate(loop, cfg)
        self.module.eval()
        return result


class StaysInEvaluationMode(SoundFramework):
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")
    trainer = Trainer


adapter = StaysInEvaluationMode()
