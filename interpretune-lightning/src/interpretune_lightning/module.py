"""The composed module as a ``LightningModule``."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from attrs import asdict
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torchmetrics import Metric

from interpretune import CheckpointError, ConfigurationError, ITModule, OptimizerSetup, it_init
from interpretune.system import without_credentials
from interpretune.training import CheckpointIdentity, as_optimizer_setup, check_optimizers
from interpretune_lightning.counted_once import BatchInHand, logged_once, predictions_of_all
from interpretune_lightning.epoch_means import epoch_means
from interpretune_lightning.habits import Habits, compile_model_only
from interpretune_lightning.loading import CHECKPOINT_KEY, LACKING, SESSION
from interpretune_lightning.sharing import samplers_of
from interpretune_lightning.stored_session import StoredSession

LOG = inspect.signature(LightningModule.log)

KEPT_BY_LIGHTNING = frozenset(
    {
        *("_automatic_optimization", "_compiler_ctx", "_current_fx_name", "_device", "_device_mesh", "_dtype"),
        *("_example_input_array", "_fabric", "_fabric_optimizers"),
        *("_jit_is_scripting", "_log_hyperparams", "_metric_attributes", "_param_requires_grad_state"),
        *("_strict_loading", "_trainer", "_verify_is_manual_optimization", "trainer", "prepare_data_per_node"),
        "allow_zero_length_dataloader_with_multiple_devices",
    }
)
"""Attributes of a module in which Lightning keeps what its trainer does."""

HPARAMS = (LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY)


class ITLightningModule(Habits, ITModule, LightningModule):  # type: ignore[misc]  # trainers call setup through the entry
    """Stands behind the user's class: what both ``ITModule`` and ``LightningModule`` define is settled here."""

    passing_state = frozenset({*KEPT_BY_LIGHTNING, "_it_identity", "_it_settings", "_batch_in_hand"})

    @property
    def global_step(self) -> int:
        """Optimizer steps; outside of training the user may count on."""
        return int(self.trainer.global_step if self._is_fitting else ITModule.global_step.fget(self))  # type: ignore[attr-defined]

    @global_step.setter
    def global_step(self, value: int) -> None:
        ITModule.global_step.fset(self, value)  # type: ignore[attr-defined]

    @property
    def current_epoch(self) -> int:
        """The trainer's epoch."""
        return LightningModule.current_epoch.fget(self)  # type: ignore[attr-defined]

    @current_epoch.setter
    def current_epoch(self, value: int) -> None:
        ITModule.current_epoch.fset(self, value)  # type: ignore[attr-defined]

    @property
    def _is_fitting(self) -> bool:
        state = self._trainer.state if self._trainer is not None else None
        return state is not None and state.fn == TrainerFn.FITTING and state.status == TrainerStatus.RUNNING

    _batch_in_hand: BatchInHand | None = None
    """The batch of a validation or test in several processes."""

    @property
    def _is_evaluating(self) -> bool:
        trainer = self._trainer
        return trainer is not None and bool(trainer.validating or trainer.testing or trainer.sanity_checking)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Log one number with the trainer, where one is running, and through ``it_log``.

        Evaluations sum in float64. In several processes each row counts once: a batch that comes again for evenness is
        not logged.
        """
        if self._fabric is not None or (self._trainer is not None and self._current_fx_name is not None):
            given, options = value, dict(LOG.bind(self, name, value, *args, **kwargs).arguments)
            for known in ("self", "name", "value"):
                del options[known]
            if self._is_evaluating:
                given, options = logged_once(self.trainer, self._batch_in_hand, name, value, options)
            LightningModule.log(self, name, given, **options)
        again = self._batch_in_hand is not None and self._batch_in_hand.repeated
        if again or isinstance(value, Metric):  # of a metric object, it_log hears at the end of the epoch
            return
        ITModule.log_dict(self, {name: value}, *args, **kwargs)

    def log_dict(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:
        """Log numbers by name; see ``log``."""
        for name, value in dictionary.items():
            self.log(name, value, *args, **kwargs)

    def configure_optimizers(self) -> Any:
        """What the stack configures, in a form that the trainer takes.

        Raises:
            TrainingError: The trainer is about to train, and there is no optimizer.
        """
        setup = as_optimizer_setup(super().configure_optimizers())
        if setup is None:
            if self._is_fitting:
                check_optimizers(self, ())
            return None
        return _for_trainer(setup)


if TYPE_CHECKING:

    class _UserModule(ITLightningModule):
        """What stands behind an entry is known when a session composes its class."""
else:
    _UserModule = object


class LightningModuleEntry(_UserModule):
    """Stands before the user's class: the trainer's calls enter here and go on to the user's methods."""

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Bring the session to life where the trainer is the first to ask for it."""
        if "stage" not in kwargs:
            super().setup(*args, **kwargs)
            self.save_settings()
            return
        compile_model_only(self)
        if not self.initialised:
            datamodule = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
            if datamodule is None:
                raise ConfigurationError(
                    "The session has not been initialised and the trainer was given no data module. Call it_init("
                    "**session) first, or trainer.fit(**session), which hands over both."
                )
            it_init(module=self, datamodule=datamodule)
        # before a strategy leaves this process a share of each parameter
        self._it_identity = CheckpointIdentity.of(self)
        self.save_settings()  # as a tuner has left them

    def on_fit_start(self) -> None:
        """Put what is trained into train mode."""
        self.set_training_mode()
        super().on_fit_start()

    def on_train_start(self) -> None:
        """Check that everything that is marked trainable is trained.

        Raises:
            TrainingError: The optimizer misses something.
        """
        check_optimizers(self, self.trainer.optimizers)
        super().on_train_start()

    def on_train_epoch_end(self) -> None:
        """Report the means over the epoch; one that ends in its middle has none, as in core's loop."""
        super().on_train_epoch_end()
        if self.trainer.is_last_batch:
            self.log_means(epoch_means(self.trainer))

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Look at the batch where several processes share the rows."""
        self._take_in_hand(batch, batch_idx, dataloader_idx)
        super().on_validation_batch_start(batch, batch_idx, dataloader_idx)

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Look at the batch where several processes share the rows."""
        self._take_in_hand(batch, batch_idx, dataloader_idx)
        super().on_test_batch_start(batch, batch_idx, dataloader_idx)

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Be done with the batch."""
        super().on_validation_batch_end(outputs, batch, batch_idx, dataloader_idx)
        self._put_down()

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Be done with the batch."""
        super().on_test_batch_end(outputs, batch, batch_idx, dataloader_idx)
        self._put_down()

    def _take_in_hand(self, batch: Any, batch_idx: int, loader_idx: int) -> None:
        if self.trainer.world_size > 1:
            self._batch_in_hand = BatchInHand.of(self.trainer, self, batch, batch_idx, loader_idx)

    def _put_down(self) -> None:
        if self._batch_in_hand is not None:
            self._batch_in_hand.put_back()
            self._batch_in_hand = None

    def on_validation_epoch_start(self) -> None:
        """Begin without a batch, whatever became of an earlier evaluation."""
        self._batch_in_hand = None
        super().on_validation_epoch_start()

    def on_test_epoch_start(self) -> None:
        """Begin without a batch, whatever became of an earlier evaluation."""
        self._batch_in_hand = None
        super().on_test_epoch_start()

    def on_predict_epoch_end(self) -> None:
        """Give each process the predictions of all, in the order of a single one."""
        super().on_predict_epoch_end()
        trainer, loop = self.trainer, self.trainer.predict_loop
        if trainer.world_size > 1 and loop.return_predictions:
            samplers = samplers_of(trainer.predict_dataloaders)
            loop._predictions = predictions_of_all(loop._predictions, samplers, trainer.world_size)

    def on_validation_end(self) -> None:
        """Report the means over the epoch."""
        super().on_validation_end()
        self.log_means(epoch_means(self.trainer))

    def on_test_end(self) -> None:
        """Report the means over the epoch."""
        super().on_test_end()
        self.log_means(epoch_means(self.trainer))

    def on_fit_end(self) -> None:
        """Keep the trainer's count of steps."""
        self.global_step = self.trainer.global_step
        super().on_fit_end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what the checkpoint belongs to."""
        identity = self._it_identity
        stored = StoredSession.of(self, self.datamodule)
        checkpoint[CHECKPOINT_KEY] = asdict(identity) | {
            "stack": list(identity.stack),
            SESSION: None if stored.lacking else stored.values,
            LACKING: stored.lacking,
        }
        for name in HPARAMS:
            if name in checkpoint:
                checkpoint[name] = without_credentials(checkpoint[name])
        super().on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint belongs to this stack and this model.

        Raises:
            CheckpointError: It does not.
        """
        if CHECKPOINT_KEY not in checkpoint:
            raise CheckpointError(
                "The checkpoint was not made by an interpretune session. Load its weights yourself: "
                "session['model'].load_state_dict(torch.load(path, weights_only=True)['state_dict'])."
            )
        self._it_identity.check(checkpoint[CHECKPOINT_KEY], "The checkpoint", holds_frozen_weights=True)
        _drop_quantization_states(self, checkpoint["state_dict"])
        super().on_load_checkpoint(checkpoint)


def _drop_quantization_states(module: ITModule, state_dict: dict[str, Any]) -> None:
    """Take the scales of weights in 4 bits out of a checkpoint: bitsandbytes saves them and does not load them.

    Raises:
        CheckpointError: They are not those of this session, whose weights would mean something else with them.
    """
    for name, part in module.named_modules():
        weight = f"{name}.weight"
        if getattr(getattr(part, "weight", None), "quant_state", None) is None:
            continue
        for key, own in part.state_dict(prefix=f"{name}.").items():
            if key != weight and not key.startswith(f"{weight}."):
                continue
            if key not in state_dict or not torch.equal(state_dict[key].cpu(), own.cpu()):
                raise CheckpointError(
                    f"The checkpoint belongs to another model: this session's quantized weights {weight} have other "
                    "values. Load the model that the checkpoint was trained on."
                )
            if key != weight:
                del state_dict[key]


def _for_trainer(setup: OptimizerSetup) -> Any:
    """Optimizers and schedulers in the form of ``LightningModule.configure_optimizers``."""
    schedulers = [
        {
            "scheduler": item.scheduler,
            "interval": item.interval,
            "frequency": item.frequency,
            **({"monitor": item.monitor} if item.monitor is not None else {}),
        }
        for item in setup.schedulers
    ]
    return list(setup.optimizers), schedulers
