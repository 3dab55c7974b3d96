"""Returns other tokens than it generated, where rows are padded; their logits are right."""

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class ReturnsPromptsWhenPadded(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def generate(self, module, tokens, mask, generation_kwargs):
        result = super().generate(module, tokens, mask, generation_kwargs)
        if not mask.all():
            result.sequences[:, tokens.shape[1] :] = tokens[:, -1:]
        return result


adapter = ReturnsPromptsWhenPadded()
