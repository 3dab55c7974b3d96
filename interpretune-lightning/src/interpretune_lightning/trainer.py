"""Lightning's Trainer, which says what to do with a session that was composed without Lightning; and core's loops."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer as LightningTrainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from interpretune import (
    CheckpointError,
    ConfigurationError,
    ITDataModule,
    ITModule,
    LoopConfig,
    LoopResult,
    TrainingError,
)
from interpretune.system import uncompiled
from interpretune_lightning.loop_callbacks import CHECKPOINTS, NEWEST, loop_callbacks
from interpretune_lightning.whole_files import checkpoint_plugins

if TYPE_CHECKING:
    from interpretune_lightning.config import ITLightningConfig

STEPS = {"fit": "training_step", "validate": "validation_step", "test": "test_step", "predict": "predict_step"}


class Trainer(LightningTrainer):
    """``lightning.pytorch.Trainer``; sessions without the adapter are refused in words.

    The original works just as well with sessions that have the adapter.
    """

    def fit(self, model: Any = None, *args: Any, **kwargs: Any) -> None:
        """Train; see Lightning."""
        super().fit(_lightning_module("fit", model, kwargs), *args, **kwargs)

    def validate(self, model: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Validate; see Lightning."""
        return super().validate(_lightning_module("validate", model, kwargs), *args, **kwargs)

    def test(self, model: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Test; see Lightning."""
        return super().test(_lightning_module("test", model, kwargs), *args, **kwargs)

    def predict(self, model: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Predict; see Lightning."""
        return super().predict(_lightning_module("predict", model, kwargs), *args, **kwargs)


def _lightning_module(loop: str, model: Any, kwargs: dict[str, Any]) -> Any:
    """The model for the trainer, if it is one.

    Raises:
        ConfigurationError: It was composed without the Lightning adapter.
        TrainingError: It lacks the step that the loop calls.
    """
    given = kwargs.pop("module", None) if model is None else model
    compiled, given = given, uncompiled(given)
    if isinstance(given, ITModule) and not isinstance(given, LightningModule):
        names = given.context.names if given.context is not None else ("core",)
        wanted = ("lightning", *(name for name in names if name != "core"))
        raise ConfigurationError(
            f"This session was composed without the Lightning adapter: its stack is {names}. Compose it with "
            f"adapter_ctx={wanted!r}; then trainer.{loop}(**session) works."
        )
    if isinstance(given, ITModule) and STEPS[loop] not in given.routed_steps:
        raise TrainingError(
            f"{type(given).__name__} has no {STEPS[loop]}, which {loop} calls for each batch. Define "
            f"`def {STEPS[loop]}(self, batch, batch_idx)`, or derive from a class that does."
        )
    return compiled


def run_loop(module: ITModule, datamodule: ITDataModule, loop: str, cfg: LoopConfig) -> LoopResult:
    """Run one of core's loops with a Trainer made for it."""
    trainer_cfg: ITLightningConfig = module.it_cfg  # type: ignore[assignment]  # composed in by this adapter
    given = trainer_cfg.trainer_kwargs
    callbacks = loop_callbacks(cfg, loop, _as_list(given.get("callbacks")))
    saves = any(isinstance(item, ModelCheckpoint) for item in callbacks)
    fixed = {"callbacks": callbacks, "plugins": checkpoint_plugins(given)}
    arguments: dict[str, Any] = {"ckpt_path": _checkpoint(cfg, loop), "weights_only": True}
    if loop in ("validate", "test"):
        arguments["verbose"] = cfg.progress
    with warnings.catch_warnings(), contextlib.nullcontext() if cfg.progress else _announcements_left_out():
        trainer = Trainer(**{**_trainer_options(cfg, loop), "enable_checkpointing": saves, **given, **fixed})
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # a run that goes on
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated")  # Lightning's own call
        warnings.filterwarnings("ignore", "You passed in a `val_dataloader` but have no")  # the data module has all
        if loop != "fit":  # evaluation takes weights alone, no callback's state
            warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks")
        returned = getattr(trainer, loop)(module, datamodule=datamodule, **arguments)
    if loop == "predict":
        return LoopResult(predictions=returned or (), global_step=module.global_step)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if loop != "fit":
        return LoopResult(metrics=metrics, global_step=module.global_step)
    if cfg.run_folder is not None and cfg.checkpoint_every_n_steps is not None:  # the end is no multiple of the steps
        trainer.save_checkpoint(_last(cfg.run_folder), weights_only=False)
    # not those that were handed over: schedules put others in their place
    checkpoints = [item for item in trainer.checkpoint_callbacks if isinstance(item, ModelCheckpoint)]
    newest = (item.last_model_path for item in checkpoints if item.last_model_path)
    best = (item.best_model_path for item in checkpoints if item.monitor not in (None, NEWEST) and item.best_model_path)
    stoppers = [item for item in trainer.early_stopping_callbacks if isinstance(item, EarlyStopping)]
    return LoopResult(
        metrics=metrics,
        global_step=module.global_step,
        checkpoint=next(map(Path, newest), None),
        best_checkpoint=next(map(Path, best), None),
        stopped_early=any(item.stopped_epoch > 0 or item.wait_count >= max(1, item.patience) for item in stoppers),
    )


@contextlib.contextmanager
def _announcements_left_out() -> Iterator[None]:
    """Lightning logs which devices there are, and advice; warnings are shown."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def warns(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING

    logger.addFilter(warns)
    try:
        yield
    finally:
        logger.removeFilter(warns)


def _trainer_options(cfg: LoopConfig, loop: str) -> dict[str, Any]:
    passed = (
        *("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val", "check_val_every_n_epoch"),
        *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
        "log_every_n_steps",
    )
    writes = loop == "fit" and cfg.run_folder is not None
    return {
        **{name: getattr(cfg, name) for name in passed},
        "gradient_clip_algorithm": cfg.gradient_clip_algorithm if cfg.gradient_clip_val is not None else None,
        "enable_progress_bar": cfg.progress,
        "enable_model_summary": cfg.progress,
        "default_root_dir": cfg.run_folder,
        "logger": CSVLogger(str(cfg.run_folder), name="metrics") if writes else False,
    }


def _last(run_folder: Path) -> Path:
    return run_folder / CHECKPOINTS / "last.ckpt"


def _checkpoint(cfg: LoopConfig, loop: str) -> str | None:
    last = _last(cfg.run_folder or Path())
    if cfg.resume_from is None:
        if loop == "fit" and cfg.run_folder is not None and last.exists():
            raise CheckpointError(
                f"{cfg.run_folder} holds checkpoints of an earlier run. Go on with it (resume_from='last'), or choose "
                "another run_dir."
            )
        return None
    if str(cfg.resume_from) != "last":
        return str(Path(cfg.resume_from).expanduser())
    if last.exists():
        return str(last)
    if loop != "fit":
        raise CheckpointError(f"{last} does not exist: there are no weights to take.")
    return None


def _as_list(callbacks: Any) -> list[Any]:
    return [] if callbacks is None else callbacks if isinstance(callbacks, list) else [callbacks]
