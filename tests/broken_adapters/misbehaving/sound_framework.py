"""Nothing is wrong with this framework: others are its trainer with one thing changed."""

from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import interpretune as it
from interpretune.session.optimization import as_optimizer_setup, check_optimizers
from interpretune.training.batches import count_batches, read_batches
from interpretune.training.evaluation import evaluate


class SmallTrainer:
    """Epochs of batches, each with a validation and a checkpoint."""

    def __init__(self, module, datamodule, cfg):
        self.module, self.datamodule, self.cfg = module, datamodule, cfg
        setup = as_optimizer_setup(module.configure_optimizers()) or it.OptimizerSetup()
        check_optimizers(module, setup.optimizers)
        self.optimizer = setup.optimizers[0]
        self.epoch = self.steps = 0
        self.metrics = {}
        self.checkpoint = None

    def fit(self):
        self.module.set_training_mode()
        try:
            while not self.is_done():
                self.run_epoch()
                self.epoch += 1
                if self.cfg.limit_val_batches != 0:
                    self.metrics |= self.evaluate("validate", replace(self.cfg, resume_from=None)).metrics
                if self.cfg.run_dir is not None:
                    self.save(Path(self.cfg.run_dir))
        finally:
            self.module.eval()
        metrics = {**self.module.logged_metrics, **self.metrics}
        return it.LoopResult(metrics=metrics, global_step=self.steps, checkpoint=self.checkpoint)

    def is_done(self):
        return 0 <= self.cfg.max_epochs <= self.epoch or self.enough_steps()

    def enough_steps(self):
        return 0 <= self.cfg.max_steps <= self.steps

    def run_epoch(self):
        loader = self.datamodule.train_dataloader()
        count, waiting = self.count(loader), 0
        for index, batch in read_batches(loader, count):
            self.batch(batch, index)
            waiting += 1
            if waiting == self.cfg.accumulate_grad_batches or index + 1 == count:
                self.step()
                waiting = 0
                if self.enough_steps():
                    return

    def count(self, loader):
        return count_batches(loader, self.cfg.limit_train_batches)

    def batch(self, batch, index):
        with torch.enable_grad():
            loss = self.module.run_step("training_step", self.module.batch_to_device(batch), index)
            self.backward(loss)

    def backward(self, loss):
        (loss / self.cfg.accumulate_grad_batches).backward()

    def step(self):
        if self.cfg.gradient_clip_val is not None:
            self.clip([item for group in self.optimizer.param_groups for item in group["params"]])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        self.module.global_step = self.steps

    def clip(self, parameters):
        clip = clip_grad_norm_ if self.cfg.gradient_clip_algorithm == "norm" else clip_grad_value_
        clip(parameters, self.cfg.gradient_clip_val)

    def evaluate(self, loop, cfg):
        if cfg.resume_from is not None:
            self.load(Path(cfg.run_dir, "last.pt") if cfg.resume_from == "last" else Path(cfg.resume_from))
        return evaluate(self.module, self.datamodule, loop, replace(cfg, resume_from=None))

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = folder / "last.pt"
        torch.save(self.module.model.state_dict(), self.checkpoint)

    def load(self, file):
        self.module.model.load_state_dict(torch.load(file, weights_only=True))


class SoundFramework:
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")
    trainer = SmallTrainer

    @it.hookimpl
    def it_run_loop(self, module, datamodule, loop, loop_cfg):
        if loop == "fit":
            return self.trainer(module, datamodule, loop_cfg).fit()
        trainer = self.trainer.__new__(self.trainer)
        trainer.module, trainer.datamodule, trainer.cfg = module, datamodule, loop_cfg
        return trainer.evaluate(loop, loop_cfg)


adapter = SoundFramework()
