"""Gives a further name to a parameter that the model does not have."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class NamesParametersThatAreNot(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_name_parameters(self, module):
        return {"acme.W_E": ["model.acme.weight"]}


adapter = NamesParametersThatAreNot()
