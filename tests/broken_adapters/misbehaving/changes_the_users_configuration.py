"""Writes into a configuration that the user owns."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class ChangesTheUsersConfiguration(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_setup_module(self, module):
        module.it_cfg.generative_step_cfg.answers = ("No", "Yes")


adapter = ChangesTheUsersConfiguration()
