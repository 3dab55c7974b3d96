"""Repeats the last token of rows that have ended until the others end, too."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter

FILL = 7


class FillsUpAfterTheEnd(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def generate(self, module, tokens, mask, generation_kwargs):
        result = super().generate(module, tokens, mask, generation_kwargs)
        eos = module.model.generation_config.eos_token_id
        ended = (result.sequences[:, tokens.shape[1] :] == eos).long().cumsum(-1).cumsum(-1) > 1
        result.sequences[:, tokens.shape[1] :][ended] = FILL
        return result


adapter = FillsUpAfterTheEnd()
