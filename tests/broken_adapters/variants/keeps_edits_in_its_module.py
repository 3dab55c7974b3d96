"""A backend that keeps the edits of the running forward in a variable of its Python module."""

import contextlib

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend

RUNNING = {}


class GlobalEditsBackend(SoundBackend):
    @contextlib.contextmanager
    def hooked(self, edits):
        RUNNING.clear()
        RUNNING.update(edits)
        with super().hooked({name: self.current(name) for name in edits}):
            yield

    def current(self, name):
        def apply(activations):
            return RUNNING[name](activations)

        return apply


class KeepsEditsInItsModule(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = GlobalEditsBackend


adapter = KeepsEditsInItsModule()
