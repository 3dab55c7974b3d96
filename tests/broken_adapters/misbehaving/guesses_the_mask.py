"""Takes every padding token for padding where there is no mask."""

import interpretune as it
from interpretune.models.padding import tokens_of
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class GuessesTheMask(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def forward(self, module, batch):
        tokens = tokens_of(batch)[1]
        guessed = (tokens != module.require_datamodule().tokenizer.pad_token_id).long()
        return super().forward(module, {"attention_mask": guessed, **batch})


adapter = GuessesTheMask()
