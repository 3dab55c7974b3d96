"""A framework that reads a checkpoint and puts none of its weights into the model."""

import torch

import interpretune as it
from tests.broken_adapters.misbehaving.sound_framework import SmallTrainer, SoundFramework


class Trainer(SmallTrainer):
    def load(self, file):
        weights = {f"model.{name}": item for name, item in torch.load(file, weights_only=True).items()}
        self.module.model.load_state_dict(weights, strict=False)


class LoadsNoCheckpoint(SoundFramework):
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")
    trainer = Trainer


adapter = LoadsNoCheckpoint()
