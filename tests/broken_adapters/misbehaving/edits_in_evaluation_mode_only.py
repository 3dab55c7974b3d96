"""Edits nothing while the model is trained: "training must not be disturbed"."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend

PLACES = ""
"""Places of which that is so; by default all."""


class EvaluatingBackend(SoundBackend):
    def hooked(self, edits):
        return super().hooked(
            {name: self.unless_training(edit) if name.endswith(PLACES) else edit for name, edit in edits.items()}
        )

    def unless_training(self, edit):
        def apply(activations):
            edited = edit(activations)
            return activations if self.model.training else edited

        return apply


class EditsInEvaluationModeOnly(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = EvaluatingBackend


adapter = EditsInEvaluationModeOnly()
