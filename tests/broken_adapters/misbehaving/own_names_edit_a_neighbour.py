"""Its own names are looked up in another table than the canonical ones, and that table has a slip."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend

SLIP = {"layers.0.self_attn.q_proj": "layers.0.self_attn.k_proj"}


class SlippingBackend(SoundBackend):
    def module_and_side(self, hook_point):
        path, side = super().module_and_side(hook_point)
        if f"{path}:{side}" == hook_point:
            for wrong, other in SLIP.items():
                if path.endswith(wrong):
                    path = path.removesuffix(wrong) + other
        return path, side


class OwnNamesEditANeighbour(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = SlippingBackend


adapter = OwnNamesEditANeighbour()
