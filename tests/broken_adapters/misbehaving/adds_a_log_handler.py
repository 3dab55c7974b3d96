"""Sends the records of all libraries to a handler of its own."""

import logging

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class AddsALogHandler(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_setup_module(self, module):
        logging.getLogger().addHandler(logging.NullHandler())


adapter = AddsALogHandler()
