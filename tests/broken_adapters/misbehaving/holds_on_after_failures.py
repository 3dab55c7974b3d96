"""Stops its thread at the end of sessions that came to life, and of no other."""

import threading

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class HoldsOnAfterFailures(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_load_model(self, module):
        module.acme_alive, module.acme_stop = False, threading.Event()
        threading.Thread(target=module.acme_stop.wait, args=(60,), name="acme-keeper", daemon=True).start()
        return super().it_load_model(module)

    @it.hookimpl
    def it_configure_optimizers(self, module):
        module.acme_alive = True

    @it.hookimpl
    def it_end_session(self, module):
        if module.acme_alive:
            module.acme_stop.set()


adapter = HoldsOnAfterFailures()
