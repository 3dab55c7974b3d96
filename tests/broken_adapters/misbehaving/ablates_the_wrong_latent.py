"""Ablates the latent beside the one that is asked for."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class NextDoorBackend(SoundBackend):
    def ablate(self, prefill, rows, columns=None, row_budget=None):
        moved = {
            name: type(item)(item.rows, (item.latents + 1) % prefill.latents[name].shape[-1], item.values)
            for name, item in rows.changes.items()
        }
        return super().ablate(prefill, type(rows)(rows.points, moved), columns, row_budget)


class AblatesTheWrongLatent(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = NextDoorBackend


adapter = AblatesTheWrongLatent()
