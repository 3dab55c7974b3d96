"""Wraps steps and forgets to return their results."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class ForgetsToReturn(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl(wrapper=True)
    def it_run_step(self):
        yield


adapter = ForgetsToReturn()
