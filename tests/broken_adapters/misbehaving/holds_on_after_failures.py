"""Stops its thread at the end of sessions that came to life, and of no other."""

import threading

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class Keeper(threading.Thread):
    def __init__(self, owner):
        super().__init__(name="acme-keeper", daemon=True)
        self.owner, self.stop = owner, threading.Event()

    def run(self):
        self.stop.wait(60)


class HoldsOnAfterFailures(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_load_model(self, module):
        module.acme_alive = False
        Keeper(id(module)).start()
        return super().it_load_model(module)

    @it.hookimpl
    def it_configure_optimizers(self, module):
        module.acme_alive = True

    @it.hookimpl
    def it_end_session(self, module):
        for thread in threading.enumerate():
            if module.acme_alive and isinstance(thread, Keeper) and thread.owner == id(module):
                thread.stop.set()


adapter = HoldsOnAfterFailures()
