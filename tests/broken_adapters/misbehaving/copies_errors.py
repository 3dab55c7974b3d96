"""Raises a copy of the user's error, without what the user noted in it."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class CopiesErrors(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl(wrapper=True)
    def it_run_step(self, step_name):
        try:
            return (yield)
        except Exception as error:
            raise type(error)(f"{step_name}: {error}") from error


adapter = CopiesErrors()
