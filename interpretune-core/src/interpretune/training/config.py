"""What a loop does, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from attrs import field as attrs_field, frozen

from interpretune.config.checked import CheckedConfig, Seed
from interpretune.errors import ConfigurationError

LAST = "last"
"""Value of ``LoopConfig.resume_from`` that means the newest whole checkpoint of ``run_dir``."""


@dataclass(kw_only=True)
class EarlyStopping(CheckedConfig, checks_types=True):
    """Stop when a metric of the validation no longer gets better; its best checkpoint is kept.

    Attributes:
        monitor: Name of a metric that ``validation_step`` logs.
        mode: Whether it should fall (``min``) or rise (``max``).
        patience: Stop after so many validations in a row without an improvement.
        min_delta: Smaller changes are no improvement.
    """

    monitor: str
    mode: Literal["min", "max"] = "min"
    patience: int = 3
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ConfigurationError(f"EarlyStopping.mode is {self.mode!r}; write 'min' or 'max'.")
        if self.patience < 0 or not self.min_delta >= 0:
            raise ConfigurationError(
                f"EarlyStopping has patience {self.patience} and min_delta {self.min_delta}; neither may be negative."
            )

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether a value improves on the best so far; not a number never does."""
        if best is None:
            return value == value
        return value < best - self.min_delta if self.mode == "min" else value > best + self.min_delta


@dataclass(kw_only=True)
class LoopConfig(CheckedConfig, checks_types=True):
    """What ``fit``, ``validate``, ``test`` and ``predict`` do; trainers of other libraries know these names.

    Attributes:
        max_epochs: Passes over the training batches; -1: until ``max_steps``.
        max_steps: Optimizer steps; -1: until ``max_epochs``.
        accumulate_grad_batches: Batches whose gradients make one optimizer step.
        gradient_clip_val: Bound on the gradients; None: none.
        gradient_clip_algorithm: Bound their common ``norm`` or each ``value``.
        limit_train_batches: Most batches in an epoch: a number, a share (float) of all, or None for all.
        limit_val_batches: The same for validation; 0: no validation.
        limit_test_batches: The same for tests.
        limit_predict_batches: The same for predictions.
        check_val_every_n_epoch: Validate after every so many epochs.
        log_every_n_steps: Write what the training logs after every so many optimizer steps.
        run_dir: Folder of ``metrics.jsonl`` and of checkpoints; None: nothing is written.
        checkpoint_every_n_steps: A checkpoint after every so many optimizer steps, beside that of each epoch.
        keep_checkpoints: Newest checkpoints to keep, beside the best.
        resume_from: A checkpoint, or ``last`` for the newest in ``run_dir`` (training begins anew where there is none).
            Evaluation loops load its weights.
        early_stopping: When to stop before the end.
        seed: Seed of the order of the batches and of dropout; the global generators are put back afterwards.
        progress: Show progress where there is a terminal.
    """

    max_epochs: int = 1
    max_steps: int = -1
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    limit_test_batches: int | float | None = None
    limit_predict_batches: int | float | None = None
    check_val_every_n_epoch: int = 1
    log_every_n_steps: int = 1
    run_dir: str | Path | None = None
    checkpoint_every_n_steps: int | None = None
    keep_checkpoints: int = 2
    resume_from: str | Path | None = None
    early_stopping: EarlyStopping | None = None
    seed: Seed | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        at_least_one = ("accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps", "keep_checkpoints")
        for name in (*at_least_one, "checkpoint_every_n_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"LoopConfig.{name} is {value}; it must be at least 1.")
        for item in fields(self):
            limit = getattr(self, item.name)
            if (
                item.name.startswith("limit_")
                and limit is not None
                and (not limit >= 0 or (not isinstance(limit, int) and limit > 1))
            ):
                raise ConfigurationError(
                    f"LoopConfig.{item.name} is {limit}; write a number of batches, or a share between 0.0 and 1.0."
                )
        if self.gradient_clip_val is not None and not self.gradient_clip_val > 0:
            raise ConfigurationError(
                f"LoopConfig.gradient_clip_val is {self.gradient_clip_val}; it must be positive (None: no clipping)."
            )
        if self.max_epochs < 0 and self.max_steps < 0:
            raise ConfigurationError("LoopConfig sets neither max_epochs nor max_steps: training would never end.")
        if self.gradient_clip_algorithm not in ("norm", "value"):
            raise ConfigurationError(
                f"LoopConfig.gradient_clip_algorithm is {self.gradient_clip_algorithm!r}; write 'norm' or 'value'."
            )

    @property
    def run_folder(self) -> Path | None:
        """``run_dir`` as a path."""
        return Path(self.run_dir).expanduser() if self.run_dir is not None else None


@frozen(kw_only=True)
class LoopResult:
    """What a loop gives back.

    Attributes:
        metrics: The last value of what the training logged, or the means over the evaluated batches.
        predictions: What ``predict_step`` returned for each batch.
        global_step: Optimizer steps so far.
        checkpoint: The newest checkpoint.
        best_checkpoint: The one with the best monitored metric.
        stopped_early: Whether ``early_stopping`` ended the training.
    """

    metrics: Mapping[str, float] = attrs_field(factory=dict)
    predictions: Sequence[Any] = ()
    global_step: int = 0
    checkpoint: Path | None = None
    best_checkpoint: Path | None = None
    stopped_early: bool = False


@dataclass
class FitState:
    """Where a training stands; all of it is in a checkpoint.

    Attributes:
        epoch: The epoch that runs or comes next.
        batch_idx: Batches of it that are done.
        global_step: Optimizer steps done.
        best: Best value of the monitored metric.
        best_checkpoint: Name of its checkpoint.
        waited: Validations since then.
        stopped_early: Whether the training was stopped for it.
        metrics: What was last reported of each metric.
        sums: The means over this epoch that are in the making.
        records: Lines of the metrics file.
    """

    epoch: int = 0
    batch_idx: int = 0
    global_step: int = 0
    best: float | None = None
    best_checkpoint: str | None = None
    waited: int = 0
    stopped_early: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    records: int = 0
