"""A small trainer: epochs of batches, an optimizer step after each, a validation after each epoch."""

from __future__ import annotations

import os

import torch
from interpretune import ConfigurationError, ITDataModule, ITModule, LoopConfig, LoopResult
from interpretune.training import (
    as_optimizer_setup,
    call_if_defined,
    check_optimizers,
    count_batches,
    evaluate,
    loss_of,
    only_loader,
    read_batches,
    step_of,
)
from torch.optim import Optimizer

NOT_YET = (
    *("accumulate_grad_batches", "gradient_clip_val", "run_dir", "checkpoint_every_n_steps", "resume_from"),
    "early_stopping",
)
"""Fields of ``LoopConfig`` that this trainer does not follow; take one out when it does."""


def train(module: ITModule, datamodule: ITDataModule, cfg: LoopConfig) -> LoopResult:
    """Train to the end.

    Args:
        module: The session's module; its steps run inside whatever the stacked adapters wrap around them.
        datamodule: Its data module.
        cfg: What to do.

    Returns:
        The latest value of what was logged, and the number of optimizer steps.

    Raises:
        ConfigurationError: Something is asked for that this trainer cannot do yet.
        TrainingError: There is nothing to train, or no step to train it with.
    """
    refuse_what_is_missing(cfg)
    optimizer = only_optimizer(module)
    step = step_of(module, "training_step", "fit")
    loader = only_loader(datamodule.train_dataloader(), "train_dataloader")
    count = count_batches(loader, cfg.limit_train_batches)
    validates = hasattr(module, "validation_step") and cfg.limit_val_batches != 0
    metrics: dict[str, float] = {}
    epoch = module.global_step = 0
    module.set_training_mode()
    try:
        call_if_defined(module, "on_train_start")
        while not is_done(cfg, epoch, module.global_step):
            module.current_epoch = epoch
            call_if_defined(module, "on_train_epoch_start")
            for index, batch in read_batches(loader, count):
                with torch.enable_grad():
                    loss = loss_of(step(module.batch_to_device(batch), index))
                if loss is None:  # the step wants to skip the batch
                    continue
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                module.global_step += 1
                if 0 <= cfg.max_steps <= module.global_step:
                    break
            epoch += 1
            if validates and epoch % cfg.check_val_every_n_epoch == 0:
                metrics.update(evaluate(module, datamodule, "validate", cfg).metrics)
            call_if_defined(module, "on_train_epoch_end")
        call_if_defined(module, "on_train_end")
    finally:
        module.eval()
    return LoopResult(metrics={**module.logged_metrics, **metrics}, global_step=module.global_step)


def is_done(cfg: LoopConfig, epoch: int, step: int) -> bool:
    """Whether a limit is reached; -1 is none."""
    return 0 <= cfg.max_epochs <= epoch or 0 <= cfg.max_steps <= step


def refuse_what_is_missing(cfg: LoopConfig) -> None:
    """Better refused than ignored."""
    default = LoopConfig()
    asked = [name for name in NOT_YET if getattr(cfg, name) != getattr(default, name)]
    if asked:
        raise ConfigurationError(
            f"The trainer of adapter_name does not know LoopConfig({', '.join(asked)}) yet. "
            "Leave it at its default, or train without this adapter."
        )
    if os.environ.get("WORLD_SIZE", "1") != "1":  # each process would train a model of its own
        raise ConfigurationError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}; the trainer of adapter_name trains in one process. "
            "Start only one, or train without this adapter."
        )


def only_optimizer(module: ITModule) -> Optimizer:
    """The optimizer that a user configured, or defined in ``configure_optimizers``; it must hold what is trainable."""
    setup = as_optimizer_setup(module.configure_optimizers())
    optimizers = setup.optimizers if setup is not None else ()
    check_optimizers(module, optimizers)
    if len(optimizers) > 1 or (setup is not None and setup.schedulers):
        raise ConfigurationError(
            "The trainer of adapter_name steps one optimizer and no learning-rate scheduler yet. "
            "Configure one optimizer alone, or train without this adapter."
        )
    optimizer: Optimizer = optimizers[0]
    return optimizer
