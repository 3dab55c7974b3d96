"""Analyses without the attention mask."""

import torch
from attrs import evolve

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class MasklessBackend(SoundBackend):
    def run_model(self, inputs, keep, **options):
        return super().run_model(evolve(inputs, attention_mask=torch.ones_like(inputs.attention_mask)), keep, **options)


class BackendIgnoresTheMask(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = MasklessBackend


adapter = BackendIgnoresTheMask()
