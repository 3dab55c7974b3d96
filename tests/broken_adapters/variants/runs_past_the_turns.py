"""A backend that runs the model itself, takes no turns with others, and notes on itself what it runs."""

import interpretune as it
from interpretune.models.padding import position_ids
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class OwnRun(SoundBackend):
    def run(self, inputs):
        self.inputs = inputs
        mask = inputs.attention_mask
        output = self.model(input_ids=inputs.tokens, attention_mask=mask, position_ids=position_ids(mask))
        return self.inputs.answers.of(output.logits)


class RunsPastTheTurns(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")
    backend = OwnRun


adapter = RunsPastTheTurns()
