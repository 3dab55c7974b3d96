"""Notes the mask of the batch on the adapter, where its model looks for it."""

import torch

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class KeepsItsBatchOnItself(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def forward(self, module, batch):
        self.tokens = batch["input_ids"]
        output = super().forward(module, batch)
        self.scale = torch.ones(self.tokens.shape[1]).unsqueeze(-1)
        output.logits = output.logits[:, : self.tokens.shape[1]] * self.scale
        return output


adapter = KeepsItsBatchOnItself()
