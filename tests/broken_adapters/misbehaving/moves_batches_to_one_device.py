"""Moves every batch to the CPU."""

import torch

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


def move(value):
    if isinstance(value, torch.Tensor):
        return value.to("cpu")
    if isinstance(value, list):
        return [move(item) for item in value]
    return {key: move(item) for key, item in value.items()} if isinstance(value, dict) else value


class MovesBatchesToOneDevice(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_move_batch(self, module, batch):
        return move(batch)


adapter = MovesBatchesToOneDevice()
