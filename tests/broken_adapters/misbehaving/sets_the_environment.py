"""Sets an environment variable."""

import os

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class SetsTheEnvironment(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_load_model(self, module):
        os.environ["ACME_CACHE"] = "acme"
        return super().it_load_model(module)


adapter = SetsTheEnvironment()
