"""Turns the user's errors into its own."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class RenamesErrors(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl(wrapper=True)
    def it_run_step(self, step_name):
        try:
            return (yield)
        except Exception as error:
            raise RuntimeError(f"{step_name} failed") from error


adapter = RenamesErrors()
