"""Counts real tokens as positions, but from 1."""

import interpretune as it
from interpretune.activations.hooked_model import HookedModel
from interpretune.models.padding import mask_of, position_ids, tokens_of
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class BackendFromOne(SoundBackend):
    create_replay = HookedModel.create_replay  # none: replays count by themselves

    def run_model(self, inputs, keep, **options):
        return super().run_model(inputs, keep, **{"position_ids": position_ids(inputs.attention_mask) + 1, **options})


class CountsPositionsFromOne(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = BackendFromOne

    def forward(self, module, batch):
        tokens, mask = tokens_of(batch)[1], mask_of(batch)
        return module.model(input_ids=tokens, attention_mask=mask, position_ids=position_ids(mask) + 1, use_cache=False)


adapter = CountsPositionsFromOne()
