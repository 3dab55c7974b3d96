"""Runs the model without the attention mask."""

import interpretune as it
from interpretune.models.padding import mask_of, tokens_of
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class IgnoresTheMask(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def forward(self, module, batch):
        mask_of(batch)
        return module.model(input_ids=tokens_of(batch)[1], use_cache=False)


adapter = IgnoresTheMask()
