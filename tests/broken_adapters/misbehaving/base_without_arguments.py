"""Contributes a base whose constructor takes no arguments."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class Keeper(it.ITModule):
    def __init__(self):
        self.fed = 0


class BaseWithoutArguments(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_contribute_classes(self):
        return it.ClassContribution(adapter="acme", module=(Keeper,))


adapter = BaseWithoutArguments()
