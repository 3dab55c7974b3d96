"""Lists a hook point that no forward comes by."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class BoastfulBackend(SoundBackend):
    def hook_point_names(self):
        return [*super().hook_point_names(), "acme.gate:out"]

    def hooked(self, edits):
        return super().hooked({name: edit for name, edit in edits.items() if not name.startswith("acme.")})


class ListsAPlaceThatNeverFires(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = BoastfulBackend


adapter = ListsAPlaceThatNeverFires()
