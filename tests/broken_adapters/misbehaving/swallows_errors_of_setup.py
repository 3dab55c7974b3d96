"""Suppresses whatever goes wrong when the data is set up."""

import contextlib

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class SwallowsErrorsOfSetup(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl(wrapper=True)
    def it_setup_datamodule(self):
        with contextlib.suppress(Exception):
            return (yield)


adapter = SwallowsErrorsOfSetup()
