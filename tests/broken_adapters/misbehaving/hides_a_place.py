"""Offers no place for what the MLP reads."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class HidingBackend(SoundBackend):
    def hook_point_names(self):
        return [name for name in super().hook_point_names() if not name.endswith("mlp_in")]


class HidesAPlace(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = HidingBackend


adapter = HidesAPlace()
