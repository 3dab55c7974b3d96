"""Replaces a method of a class of transformers."""

import functools

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class PatchesTransformers(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_load_model(self, module):
        model = super().it_load_model(module)
        kind = type(model)
        kind.forward = noting(kind.forward)
        return model


def noting(forward):
    @functools.wraps(forward)
    def noted(self, *args, **kwargs):
        self.acme_forwards = getattr(self, "acme_forwards", 0) + 1
        return forward(self, *args, **kwargs)

    return noted


adapter = PatchesTransformers()
