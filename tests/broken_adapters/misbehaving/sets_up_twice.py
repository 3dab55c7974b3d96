"""Calls the module's setup, which core has called already."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class SetsUpTwice(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_setup_module(self, module, datamodule):
        module.setup(datamodule=datamodule)


adapter = SetsUpTwice()
