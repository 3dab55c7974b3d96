"""Lightning's Trainer, which says what to do with a session that was composed without Lightning; and core's loops."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
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
from interpretune.loops.config import LAST

if TYPE_CHECKING:
    from interpretune_lightning.config import ITLightningConfig

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints in a run's folder."""
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
    return given


def run_loop(module: ITModule, datamodule: ITDataModule, loop: str, cfg: LoopConfig) -> LoopResult:
    """Run one of core's loops with a Trainer made for it."""
    trainer_cfg: ITLightningConfig = module.it_cfg  # type: ignore[assignment]  # composed in by this adapter
    options = {**_trainer_options(cfg, loop), **trainer_cfg.trainer_kwargs}
    own = _callbacks(cfg) if loop == "fit" else []
    options["callbacks"] = [*own, *_as_list(options.get("callbacks"))]
    trainer = Trainer(**options)
    arguments: dict[str, Any] = {"ckpt_path": _checkpoint(cfg, loop), "weights_only": True}
    if loop in ("validate", "test"):
        arguments["verbose"] = cfg.progress
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # a run that goes on
        warnings.filterwarnings("ignore", "You passed in a `val_dataloader` but have no")  # the data module has all
        if loop != "fit":  # evaluation takes weights alone, no callback's state
            warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks")
        returned = getattr(trainer, loop)(module, datamodule=datamodule, **arguments)
    if loop == "predict":
        return LoopResult(predictions=returned or (), global_step=module.global_step)
    checkpoints = [item for item in own if isinstance(item, ModelCheckpoint)]
    stoppers = [item for item in own if isinstance(item, EarlyStopping)]
    best = next((item.best_model_path for item in checkpoints if item.monitor), "")
    return LoopResult(
        metrics={name: float(value) for name, value in trainer.callback_metrics.items()},
        global_step=module.global_step,
        checkpoint=Path(checkpoints[0].last_model_path) if checkpoints and checkpoints[0].last_model_path else None,
        best_checkpoint=Path(best) if best else None,
        stopped_early=any(item.stopped_epoch > 0 for item in stoppers),
    )


def _trainer_options(cfg: LoopConfig, loop: str) -> dict[str, Any]:
    passed = (
        *("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val", "check_val_every_n_epoch"),
        *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
        "log_every_n_steps",
    )
    writes = loop == "fit" and cfg.run_dir is not None
    return {
        **{name: getattr(cfg, name) for name in passed},
        "gradient_clip_algorithm": cfg.gradient_clip_algorithm if cfg.gradient_clip_val is not None else None,
        "enable_progress_bar": cfg.progress,
        "enable_model_summary": cfg.progress,
        "enable_checkpointing": writes,
        "default_root_dir": cfg.run_dir,
        "logger": CSVLogger(str(cfg.run_dir), name="metrics") if writes else False,
    }


def _callbacks(cfg: LoopConfig) -> list[Callback]:
    callbacks: list[Callback] = []
    if cfg.run_dir is not None:
        folder = Path(cfg.run_dir) / CHECKPOINTS
        callbacks.append(
            ModelCheckpoint(
                folder,
                every_n_train_steps=cfg.checkpoint_every_n_steps,
                every_n_epochs=1 if cfg.checkpoint_every_n_steps is None else None,
                save_last=True,
            )
        )
        if cfg.early_stopping is not None:
            rule = cfg.early_stopping
            callbacks.append(ModelCheckpoint(folder, "best-{step}", monitor=rule.monitor, mode=rule.mode))
    if cfg.early_stopping is not None:
        rule = cfg.early_stopping
        callbacks.append(EarlyStopping(rule.monitor, mode=rule.mode, patience=rule.patience, min_delta=rule.min_delta))
    return callbacks


def _checkpoint(cfg: LoopConfig, loop: str) -> str | None:
    last = Path(cfg.run_dir or ".") / CHECKPOINTS / "last.ckpt"
    if cfg.resume_from is None:
        if loop == "fit" and cfg.run_dir is not None and last.exists():
            raise CheckpointError(
                f"{cfg.run_dir} holds checkpoints of an earlier run. Go on with it (resume_from='last'), or choose "
                "another run_dir."
            )
        return None
    if str(cfg.resume_from) != LAST:
        return str(cfg.resume_from)
    if last.exists():
        return str(last)
    if loop != "fit":
        raise CheckpointError(f"{last} does not exist: there are no weights to take.")
    return None


def _as_list(callbacks: Any) -> list[Any]:
    return [] if callbacks is None else callbacks if isinstance(callbacks, list) else [callbacks]
