"""Removes its hooks unless something goes wrong."""

import contextlib

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class ForgetfulBackend(SoundBackend):
    @contextlib.contextmanager
    def hooked(self, edits):
        self.contexts = [*getattr(self, "contexts", ()), super().hooked(edits)]
        self.contexts[-1].__enter__()
        yield
        self.contexts.pop().__exit__(None, None, None)


class LeavesAHookAfterErrors(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = ForgetfulBackend


adapter = LeavesAHookAfterErrors()
