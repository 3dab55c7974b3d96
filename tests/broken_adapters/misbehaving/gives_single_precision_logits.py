"""Gives logits of half-precision models in float32."""

import torch

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend

HALVES = (torch.bfloat16, torch.float16)


class UpcastingBackend(SoundBackend):
    def run_model(self, inputs, keep, **options):
        logits = super().run_model(inputs, keep, **options)
        return logits.float() if logits.dtype in HALVES else logits


class GivesSinglePrecisionLogits(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = UpcastingBackend


adapter = GivesSinglePrecisionLogits()
