"""Leaves positions to the model, which counts padding."""

import interpretune as it
from interpretune.models.padding import mask_of, tokens_of
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class CountsPaddingAsPositions(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def forward(self, module, batch):
        return module.model(input_ids=tokens_of(batch)[1], attention_mask=mask_of(batch), use_cache=False)


adapter = CountsPaddingAsPositions()
