"""Keeps what a batch gave, by its tokens, and gives it again after the weights have changed."""

import functools

from torch import Tensor

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend

METHOD = "run_with_cache"


class RememberingBackend(SoundBackend):
    def __init__(self, *args):
        super().__init__(*args)
        setattr(self, METHOD, remembering(getattr(self, METHOD)))


def remembering(method):
    kept = {}

    @functools.wraps(method)
    def call(inputs, *given, **named):
        key = (inputs.tokens.numpy().tobytes(), inputs.attention_mask.numpy().tobytes(), str(given), str(named))
        if key not in kept:
            kept[key] = method(inputs, *given, **named)
        return copied(kept[key])

    return call


def copied(result):
    if isinstance(result, tuple):
        return tuple(map(copied, result))
    if isinstance(result, dict):
        return {name: copied(value) for name, value in result.items()}
    return result.clone() if isinstance(result, Tensor) else result


class RemembersBatches(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = RememberingBackend


adapter = RemembersBatches()
