"""A framework that knows no gradient clipping and does not say so."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound_framework import SmallTrainer, SoundFramework


class Trainer(SmallTrainer):
    def clip(self, parameters):
        pass


class ClipsNothing(SoundFramework):
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")
    trainer = Trainer


adapter = ClipsNothing()
