"""Core's training loop."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from interpretune.errors import CheckpointError, TrainingError
from interpretune.plugins.contributions import OptimizerSetup
from interpretune.session.optimization import as_optimizer_setup, check_optimizers
from interpretune.session.step_routing import TRAINING_STEP, loss_of
from interpretune.system.progress import progress_bar
from interpretune.system.ranks import rank_and_processes
from interpretune.training.batches import count_batches, only_loader, read_batches
from interpretune.training.checkpoint import (
    checkpoint_name,
    delete_later,
    delete_old,
    find_checkpoint,
    is_of_run,
    load_checkpoint,
    save_checkpoint,
    whole_checkpoints,
)
from interpretune.training.config import EarlyStopping, FitState, LoopConfig, LoopResult
from interpretune.training.evaluation import call_if_defined, evaluate, step_of
from interpretune.training.metric_log import MetricLog, MetricsFile

if TYPE_CHECKING:
    from interpretune.session.datamodule import ITDataModule
    from interpretune.session.module import ITModule


class FitLoop:
    """Trains a module in this process: epochs of batches, each followed by a validation and a checkpoint."""

    def __init__(self, module: ITModule, datamodule: ITDataModule, cfg: LoopConfig) -> None:
        if (processes := rank_and_processes()[1]) > 1:
            raise TrainingError(
                f"WORLD_SIZE is {processes}, and core's loop trains in one process: each of these would "
                "train a model of its own. Stack a framework adapter, whose trainer knows several processes."
            )
        self.module, self.datamodule, self.cfg = module, datamodule, cfg
        self.step = step_of(module, TRAINING_STEP, "fit")
        self.run_dir = cfg.run_folder
        self.setup = _one_optimizer(module)
        self.optimizer = self.setup.optimizers[0]
        self.trained = [item for group in self.optimizer.param_groups for item in group["params"]]
        self.state = FitState()
        self.random_states: dict[str, Any] = {}
        self.checkpoint: Path | None = None
        self.resumed: Path | None = None
        self.validates = hasattr(module, "validation_step") and cfg.limit_val_batches != 0

    def run(self) -> LoopResult:
        """Train to the end.

        Raises:
            TrainingError: A loss is no finite number, or a monitored metric is not logged.
            CheckpointError: ``resume_from`` does not fit, or ``run_dir`` holds another run.
        """
        module, state = self.module, self.module._it_state
        self._resume()
        module.global_step = self.state.global_step  # that of an earlier training of this session may still stand there
        state.metric_log = self.log = MetricLog(means_by_default=False)
        self.log.sums = self.state.sums
        self.file = MetricsFile(self.run_dir, self.state.records) if self.run_dir is not None else None
        self.loader = only_loader(self.datamodule.train_dataloader(), "train_dataloader")
        module.set_training_mode()
        try:
            with torch.enable_grad(), progress_bar(shown=self.cfg.progress) as self.progress:
                call_if_defined(module, "on_fit_start")
                call_if_defined(module, "on_train_start")
                while not self._is_done():
                    self._epoch()
                call_if_defined(module, "on_train_end")
                call_if_defined(module, "on_fit_end")
        finally:
            module.eval()
            state.metric_log = None
            if self.file is not None:
                self.file.close()
        best = self.state.best_checkpoint
        return LoopResult(
            metrics=self.state.metrics,
            global_step=self.state.global_step,
            checkpoint=self.checkpoint,
            best_checkpoint=self.checkpoint.with_name(best) if self.checkpoint is not None and best else None,
            stopped_early=self.state.stopped_early,
        )

    def _is_done(self) -> bool:
        state, cfg = self.state, self.cfg
        return state.stopped_early or 0 <= cfg.max_epochs <= state.epoch or 0 <= cfg.max_steps <= state.global_step

    # ------------------------------------------------------------------------------------------------------------ epoch

    def _epoch(self) -> None:
        module, cfg, state = self.module, self.cfg, self.state
        module._it_state._current_epoch = state.epoch
        resumed = self.random_states.pop("now", None)
        if resumed is not None:  # in the middle of an epoch: its batches come in the order that they had
            _set_random_state(self.random_states["epoch"])
        else:
            self.random_states["epoch"] = _random_state()
        count = count_batches(self.loader, cfg.limit_train_batches)
        done = state.batch_idx
        task = self.progress.add_task(f"epoch {state.epoch}", total=count, completed=done)
        call_if_defined(module, "on_train_epoch_start")
        accumulated = 0
        for index, batch in read_batches(self.loader, count):
            if index < done:
                continue
            if resumed is not None:
                _set_random_state(resumed)
                resumed = None
            self._batch(batch, index)
            state.batch_idx, accumulated = index + 1, accumulated + 1
            self.progress.advance(task)
            if accumulated == cfg.accumulate_grad_batches or state.batch_idx == count:
                self._optimizer_step()
                accumulated = 0
                if 0 <= cfg.max_steps <= state.global_step and state.batch_idx != count:
                    state.metrics = {**state.metrics, **self.log.latest()}
                    self._save()
                    return
        if resumed is not None:  # nothing of the epoch was left to do but its end
            _set_random_state(resumed)
        if accumulated:  # a loader without a length ended in the middle of an accumulation
            self._optimizer_step()
        self.progress.remove_task(task)
        self._end_epoch()

    def _batch(self, batch: Any, index: int) -> None:
        self.log.start_batch(batch)
        loss = loss_of(self.step(self.module.batch_to_device(batch), index))
        if loss is not None:
            (loss / self.cfg.accumulate_grad_batches).backward()

    def _optimizer_step(self) -> None:
        cfg, state = self.cfg, self.state
        if cfg.gradient_clip_val is not None:
            clip = clip_grad_norm_ if cfg.gradient_clip_algorithm == "norm" else clip_grad_value_
            clip(self.trained, cfg.gradient_clip_val)
        self.optimizer.step()
        self.optimizer.zero_grad()
        state.global_step += 1
        self.module.global_step = state.global_step
        rates = {"lr": self.optimizer.param_groups[0]["lr"]}
        self._step_schedulers("step", state.global_step)
        if self.file is not None and state.global_step % cfg.log_every_n_steps == 0:
            self.file.write({**self.log.latest(), **rates}, step=state.global_step, epoch=state.epoch)
        if cfg.checkpoint_every_n_steps is not None and state.global_step % cfg.checkpoint_every_n_steps == 0:
            self._save()

    def _end_epoch(self) -> None:
        module, cfg, state = self.module, self.cfg, self.state
        self.log.end_batches()
        found: dict[str, float] = {}
        if self.validates and (state.epoch + 1) % cfg.check_val_every_n_epoch == 0:
            validation = replace(cfg, resume_from=None)
            found |= evaluate(module, self.datamodule, "validate", validation, self.progress).metrics
        call_if_defined(module, "on_train_epoch_end")
        means = self.log.take_means()
        module.log_means(means)
        found = {**self.log.latest(), **found, **means}
        state.metrics = {**state.metrics, **found}
        improved = self._early_stopping(cfg.early_stopping, found) if cfg.early_stopping is not None else False
        if self.file is not None:
            self.file.write(found, step=state.global_step, epoch=state.epoch)
        self._step_schedulers("epoch", state.epoch + 1)
        state.epoch, state.batch_idx = state.epoch + 1, 0
        if improved:
            state.best_checkpoint = checkpoint_name(state)
        self._save()

    def _early_stopping(self, rule: EarlyStopping, metrics: dict[str, float]) -> bool:
        """Note whether this validation is the best so far."""
        state = self.state
        if rule.monitor not in metrics:
            if self.validates and (state.epoch + 1) % self.cfg.check_val_every_n_epoch:
                return False  # no validation in this epoch
            raise TrainingError(
                f"early_stopping monitors {rule.monitor!r}, which nothing logged. Logged: "
                f"{', '.join(sorted(metrics)) or 'nothing'}. Log it in validation_step, or monitor another metric."
            )
        value = metrics[rule.monitor]
        if rule.is_better(value, state.best):
            state.best, state.waited = value, 0
            return True
        state.waited += 1
        state.stopped_early = state.waited >= rule.patience
        return False

    def _step_schedulers(self, interval: str, count: int) -> None:
        for item in self.setup.schedulers:
            if item.interval != interval or count % item.frequency:
                continue
            if not isinstance(item.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                item.scheduler.step()
                continue
            known = {**self.module.logged_metrics, **self.state.metrics}
            value = known.get(item.monitor or "")
            if value is None or math.isnan(value):
                raise TrainingError(
                    f"The plateau scheduler monitors {item.monitor!r}, which is {value} now. Logged: "
                    f"{', '.join(sorted(known)) or 'nothing'}. Set lr_scheduler_init['monitor'] to one of them."
                )
            item.scheduler.step(value)

    # ------------------------------------------------------------------------------------------------------ checkpoints

    def _save(self) -> None:
        if self.run_dir is None:
            return
        self.state.sums = self.log.sums
        self.state.records = self.file.records if self.file is not None else 0
        extra = {**self.random_states, "now": _random_state()}
        if self.resumed is not None:  # before the first of its own: what is killed now goes on from there again
            delete_later(self.run_dir, self.resumed)
            self.resumed = None
        self.checkpoint = save_checkpoint(self.run_dir, self.module, self.setup, self.state, extra)
        delete_old(self.run_dir, self.cfg.keep_checkpoints, self.state.best_checkpoint)

    def _resume(self) -> None:
        cfg = self.cfg
        folder = find_checkpoint(cfg.resume_from, self.run_dir) if cfg.resume_from is not None else None
        if self.run_dir is not None:
            if folder is not None and is_of_run(folder, self.run_dir):
                self.resumed = folder
            elif found := whole_checkpoints(self.run_dir):
                raise CheckpointError(
                    f"{self.run_dir} holds checkpoints of an earlier run, up to {found[-1].name}. Go on with it "
                    "(resume_from='last'), or choose another run_dir."
                )
        if folder is None:
            return
        self.state, random_states = load_checkpoint(folder, self.module, self.setup)
        self.random_states = dict(random_states)
        self.checkpoint = folder
        if self.state.batch_idx == 0:
            _set_random_state(self.random_states.pop("now"))


def _one_optimizer(module: ITModule) -> OptimizerSetup:
    setup = as_optimizer_setup(module.configure_optimizers()) or OptimizerSetup()
    check_optimizers(module, setup.optimizers)
    if len(setup.optimizers) > 1:
        raise TrainingError(
            f"configure_optimizers of {type(module).__name__} returned {len(setup.optimizers)} optimizers; this loop "
            "steps one. Give one optimizer several parameter groups, or write the loop by hand."
        )
    return setup


def _random_state() -> dict[str, Any]:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
