"""Batches of some size take another way to the answer, which counts the padding behind it wrongly."""

import interpretune as it
from interpretune.activations.inputs import Points
from tests.broken_adapters.misbehaving.sound import SoundAdapter, SoundBackend

ROWS = 5
SIDE = -1
"""Slot of a row where there is padding: the last, or the first."""


class EarlyInLargeBatches(SoundBackend):
    def forward(self, inputs, edits, points=None, **options):
        if points is not None and len(inputs) >= ROWS:
            padded = inputs.attention_mask[points.examples, SIDE] == 0
            points = Points(points.examples, points.positions - padded.long())
        return super().forward(inputs, edits, points, **options)


class AnswersOneEarlyInLargeBatches(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    backend = EarlyInLargeBatches


adapter = AnswersOneEarlyInLargeBatches()
