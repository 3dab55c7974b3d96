"""Raises an error when a session ends."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class FailsAtTheEnd(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_end_session(self, module):
        module.acme_file.close()


adapter = FailsAtTheEnd()
