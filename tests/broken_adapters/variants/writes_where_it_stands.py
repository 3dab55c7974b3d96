"""A framework that writes its checkpoints into the working directory."""

from pathlib import Path

import interpretune as it
from tests.broken_adapters.misbehaving.sound_framework import SmallTrainer, SoundFramework


class Trainer(SmallTrainer):
    def save(self, folder):
        super().save(Path("checkpoints"))


class WritesWhereItStands(SoundFramework):
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")
    trainer = Trainer


adapter = WritesWhereItStands()
