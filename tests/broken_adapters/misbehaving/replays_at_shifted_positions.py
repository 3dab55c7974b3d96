"""Replays tokens one position too early."""

from attrs import evolve

import interpretune as it
from interpretune.backends.hugging_face_replay import HuggingFaceReplay
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend


class ShiftingReplay(HuggingFaceReplay):
    def prefill(self, *args):
        logits, prefix = super().prefill(*args)
        return logits, evolve(prefix, position_ids=prefix.position_ids - 1)


class ShiftingBackend(SoundBackend):
    def create_replay(self):
        return ShiftingReplay(self)


class ReplaysAtShiftedPositions(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = ShiftingBackend


adapter = ReplaysAtShiftedPositions()
