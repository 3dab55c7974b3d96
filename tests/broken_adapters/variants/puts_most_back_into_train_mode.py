"""A framework that puts all but one part of the model back into train mode after a validation."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound_framework import SmallTrainer, SoundFramework


class Trainer(SmallTrainer):
    def evaluate(self, loop, cfg):
        result = super().evaluate(loop, cfg)
        next(part for part in self.module.model.modules() if not list(part.children())).eval()
        return result


class PutsMostBackIntoTrainMode(SoundFramework):
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")
    trainer = Trainer


adapter = PutsMostBackIntoTrainMode()
