"""A framework that clips by norm where clipping by value is asked for."""

from torch.nn.utils import clip_grad_norm_

import interpretune as it
from tests.broken_adapters.misbehaving.sound_framework import SmallTrainer, SoundFramework


class Trainer(SmallTrainer):
    def clip(self, parameters):
        clip_grad_norm_(parameters, 20 * self.cfg.gradient_clip_val if self.by_value else self.cfg.gradient_clip_val)

    @property
    def by_value(self):
        return self.cfg.gradient_clip_algorithm == "value"


class ClipsByNormOnly(SoundFramework):
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")
    trainer = Trainer


adapter = ClipsByNormOnly()
