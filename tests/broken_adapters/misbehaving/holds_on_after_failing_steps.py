"""Stops its thread after steps that went well, and after no other."""

import threading

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class HoldsOnAfterFailingSteps(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl(wrapper=True)
    def it_run_step(self, module):
        stop = threading.Event()
        threading.Thread(target=stop.wait, args=(60,), name="acme-keeper", daemon=True).start()
        result = yield
        stop.set()
        return result


adapter = HoldsOnAfterFailingSteps()
