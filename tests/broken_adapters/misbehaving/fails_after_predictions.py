"""Fails at the end of sessions that predicted something."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class FailsAfterPredictions(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_end_session(self, module):
        if getattr(module, "last_prediction", None) is not None:
            raise OSError("acme_file is closed already")


adapter = FailsAfterPredictions()
