"""Contributes classes in the name of another adapter."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class SignsAsAnother(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_contribute_classes(self):
        return it.ClassContribution(adapter="menagerie")


adapter = SignsAsAnother()
