"""Keeps one edit for each place: that of an inner block takes the place of the outer one's."""

import contextlib

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend

ALL = False
"""Whether an inner block replaces the outer one as a whole."""


class OneEditBackend(SoundBackend):
    def __init__(self, *args):
        super().__init__(*args)
        self.nested = []

    @contextlib.contextmanager
    def hooked(self, edits):
        block = set(edits)
        self.nested.append(block)
        try:
            with super().hooked({name: self.unless_replaced(name, edit, block) for name, edit in edits.items()}):
                yield
        finally:
            self.nested.pop()

    def unless_replaced(self, name, edit, block):
        def apply(activations):
            edited = edit(activations)
            inner = self.nested[self.nested.index(block) + 1 :] if block in self.nested else []
            inner = [other for other in inner if other is not block]
            replaced = any(other if ALL else name in other for other in inner)
            return activations if replaced else edited

        return apply


class ReplacesOuterEdits(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = OneEditBackend


adapter = ReplacesOuterEdits()
