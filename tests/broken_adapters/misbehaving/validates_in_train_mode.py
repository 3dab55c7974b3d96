"""A framework whose validation after an epoch leaves dropout on."""

import torch

import interpretune as it
from interpretune.training.batches import count_batches, read_batches
from tests.broken_adapters.misbehaving.sound_framework import SmallTrainer, SoundFramework


class Trainer(SmallTrainer):
    def evaluate(self, loop, cfg):
        if loop != "validate" or not self.module.model.training:
            return super().evaluate(loop, cfg)
        loader = self.datamodule.val_dataloader()
        with torch.no_grad():
            for index, batch in read_batches(loader, count_batches(loader, cfg.limit_val_batches)):
                self.module.run_step("validation_step", self.module.batch_to_device(batch), index)
        return it.LoopResult(metrics=self.module.logged_metrics)


class ValidatesInTrainMode(SoundFramework):
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")
    trainer = Trainer


adapter = ValidatesInTrainMode()
