"""Reads one digit of a layer's number."""

import re

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend

NAMES = r"layers\.\d+\.\w+"
"""Names that are read so: the canonical ones."""


class OneDigitBackend(SoundBackend):
    def module_and_side(self, hook_point):
        if re.fullmatch(NAMES, hook_point):
            hook_point = re.sub(r"\.(\d)\d+\.", r".\1.", hook_point)
        return super().module_and_side(hook_point)


class TakesLayer10ForLayer1(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = OneDigitBackend


adapter = TakesLayer10ForLayer1()
