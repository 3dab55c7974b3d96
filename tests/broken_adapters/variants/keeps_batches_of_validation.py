"""A framework that notes every batch that it moves to the device."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound_framework import SoundFramework


class KeepsBatchesOfValidation(SoundFramework):
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")

    def __init__(self):
        self.seen = {}

    @it.hookimpl(wrapper=True)
    def it_move_batch(self, module, batch):
        moved = yield
        if not module.training:
            self.seen[len(self.seen)] = moved
        return moved


adapter = KeepsBatchesOfValidation()
