"""Checkpoints and early stop of core's loops as Lightning's callbacks, beside those that the user gives."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from interpretune import ConfigurationError, LoopConfig

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints in a run's folder."""
NEWEST = "step"
"""What a checkpoint callback monitors that keeps the newest."""


def loop_callbacks(cfg: LoopConfig, loop: str, given: Sequence[Callback]) -> list[Callback]:
    """What the Trainer of a loop gets.

    Args:
        cfg: The loop's configuration.
        loop: ``fit``, ``validate``, ``test`` or ``predict``.
        given: The user's callbacks. A fine-tuning schedule is for ``fit`` only, as it freezes what it will thaw.

    Raises:
        ConfigurationError: A fine-tuning schedule does not go with ``run_dir`` or ``early_stopping`` as they are.
    """
    if loop != "fit":
        return [item for item in given if not _is_schedule(item)]
    schedule: Any = next((item for item in given if _is_schedule(item)), None)
    if schedule is not None:
        _check_schedule(cfg, schedule, given)
    scheduled = schedule is not None
    return [*_checkpoints(cfg, given, scheduled=scheduled), *_stoppers(cfg, scheduled=scheduled), *given]


def _checkpoints(cfg: LoopConfig, given: Sequence[Callback], *, scheduled: bool) -> list[Callback]:
    """Those that keep the newest and the best; finetuning-scheduler works with a single one, the best or the user's."""
    if cfg.run_folder is None or (scheduled and any(isinstance(item, ModelCheckpoint) for item in given)):
        return []
    kind = _fts().FTSCheckpoint if scheduled else ModelCheckpoint
    folder, rule = cfg.run_folder / CHECKPOINTS, cfg.early_stopping
    newest = kind(
        folder,
        monitor=NEWEST,
        mode="max",
        save_top_k=cfg.keep_checkpoints,
        every_n_train_steps=cfg.checkpoint_every_n_steps,
        every_n_epochs=1 if cfg.checkpoint_every_n_steps is None else None,
        save_last=True,
    )
    if rule is None:
        return [newest]
    best = kind(folder, "best-{step}", monitor=rule.monitor, mode=rule.mode, save_last=scheduled or None)
    return [best] if scheduled else [newest, best]


def _stoppers(cfg: LoopConfig, *, scheduled: bool) -> list[Callback]:
    rule = cfg.early_stopping
    if rule is None:
        return []
    kind = _fts().FTSEarlyStopping if scheduled else EarlyStopping
    return [
        kind(
            rule.monitor,
            mode=rule.mode,
            patience=rule.patience,
            min_delta=rule.min_delta,
            check_finite=False,  # not a number is no improvement, as in core's loop
        )
    ]


def _check_schedule(cfg: LoopConfig, schedule: Any, given: Sequence[Callback]) -> None:
    if cfg.run_folder is None:
        raise ConfigurationError(
            "A fine-tuning schedule goes back to its best checkpoint between phases, and LoopConfig.run_dir is None: "
            "there is no folder for checkpoints. Set run_dir."
        )
    if cfg.early_stopping is not None and schedule.epoch_transitions_only:
        raise ConfigurationError(
            "LoopConfig.early_stopping is set, and FinetuningScheduler(epoch_transitions_only=True) would drop it. "
            "Leave one of them out: with early_stopping each phase of the schedule ends when its metric no longer gets "
            "better, and the last one ends the training."
        )
    if cfg.early_stopping is not None and any(isinstance(item, EarlyStopping) for item in given):
        raise ConfigurationError(
            "A fine-tuning schedule works with one early stop, and there are two: LoopConfig.early_stopping and a "
            "callback in trainer_kwargs. Leave one of them out."
        )


def _is_schedule(callback: Callback) -> bool:
    """Whether it is a ``FinetuningScheduler``; nobody has one who has not imported the package."""
    return "finetuning_scheduler" in sys.modules and isinstance(callback, _fts().FinetuningScheduler)


def _fts() -> Any:
    return sys.modules["finetuning_scheduler"]
