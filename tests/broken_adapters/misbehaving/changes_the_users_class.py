"""Adds an attribute to the user's class."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class ChangesTheUsersClass(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_load_model(self, module):
        type(module).__mro__[1].acme = True
        return super().it_load_model(module)


adapter = ChangesTheUsersClass()
