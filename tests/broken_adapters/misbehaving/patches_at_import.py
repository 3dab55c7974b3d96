"""Replaces a method of a class of torch when it is imported."""

import functools

from torch import nn

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class PatchesAtImport(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")


def noting(forward):
    @functools.wraps(forward)
    def noted(self, *args, **kwargs):
        return forward(self, *args, **kwargs)

    return noted


nn.Linear.forward = noting(nn.Linear.forward)
adapter = PatchesAtImport()
