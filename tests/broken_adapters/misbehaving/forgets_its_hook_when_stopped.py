"""Removes the hook of a spliced run unless the run goes wrong."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class ForgetfulSplicing(SoundBackend):
    def run_spliced(self, *args, **kwargs):
        handle = self.model.register_forward_hook(lambda *given: None)
        result = super().run_spliced(*args, **kwargs)
        handle.remove()
        return result


class ForgetsItsHookWhenStopped(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = ForgetfulSplicing


adapter = ForgetsItsHookWhenStopped()
