"""Contributes another class each time that it is asked."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class ChangesItsMind(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_contribute_classes(self):
        return it.ClassContribution(adapter="acme", module=(type("Keeper", (it.ITModule,), {}),))


adapter = ChangesItsMind()
