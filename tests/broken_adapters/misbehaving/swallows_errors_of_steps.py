"""Logs the errors of steps and goes on."""

import logging

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class SwallowsErrorsOfSteps(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl(wrapper=True)
    def it_run_step(self, step_name):
        try:
            return (yield)
        except Exception:  # noqa: BLE001 - that is what is wrong
            logging.getLogger("acme").info("%s failed", step_name)
            return None


adapter = SwallowsErrorsOfSteps()
