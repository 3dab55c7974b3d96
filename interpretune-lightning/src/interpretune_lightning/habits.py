"""What users of Lightning are used to find on a module: hyperparameters, a learning rate, loading, compiling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch import LightningModule

from interpretune import CheckpointError, ConfigurationError, ITModule, ITSessionConfig
from interpretune.system import compiled_in_place
from interpretune_lightning.hyperparameters import Hyperparameters
from interpretune_lightning.loading import load_session
from interpretune_lightning.stored_session import StoredSession
from interpretune_lightning.tuning import LearningRate

STEPS = ("forward", "training_step", "validation_step", "test_step", "predict_step")


class Habits(Hyperparameters, LearningRate, ITModule, LightningModule):  # type: ignore[misc]  # as in the class that derives from it
    """Loggers get the session's settings as hyperparameters, without credentials; checkpoints give sessions."""

    _it_settings: Mapping[str, Any] = MappingProxyType({})

    def save_settings(self) -> None:
        """Let loggers have the session's settings beside ``hparams``, which are those that the user's class saves."""
        self._it_settings = StoredSession.of(self, self.datamodule).settings()
        self._log_hyperparams = True

    @property
    def hparams_initial(self) -> Any:
        """What loggers get: settings of the session and hyperparameters, without credentials."""
        return AttributeDict({**self._it_settings, **super().hparams_initial})

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # a session has other arguments
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        *,
        session_cfg: ITSessionConfig | None = None,
        **settings: Any,
    ) -> Any:
        """The trained module of a checkpoint; ``load_session`` also gives its data module.

        Args:
            checkpoint_path: The file.
            map_location: Where weights are read to.
            hparams_file: Not used: the checkpoint has the configuration.
            strict: Whether the weights must be those of all parameters; None: yes.
            weights_only: Not used: nothing in a checkpoint is executed.
            session_cfg: What the session is made of; None: what the checkpoint says.
            **settings: None are taken.

        Raises:
            CheckpointError: See ``load_session``; or the checkpoint belongs to a module of another class.
            ConfigurationError: Settings are given one by one.
        """
        if hparams_file is not None or settings:
            given = ", ".join([*settings, *(["hparams_file"] if hparams_file is not None else [])])
            raise ConfigurationError(
                f"load_from_checkpoint of a session's module is given {given}. Its settings are those of its session: "
                "change them in an ITSessionConfig, and pass session_cfg=..."
            )
        session = load_session(checkpoint_path, session_cfg, map_location=map_location, strict=strict is not False)
        wanted = session.session_cfg.module_cls
        if not issubclass(cls, wanted):
            raise CheckpointError(
                f"The checkpoint {checkpoint_path} belongs to a {wanted.__name__}, and not to a {cls.__name__}. Load "
                "it with interpretune_lightning.load_session."
            )
        return session["model"]


def compile_model_only(module: Any) -> None:
    """Of a session's module that was compiled for the trainer, let the model alone be compiled.

    Lightning puts compiled steps in the place of a module's own. Around the model these run hooks of adapters and take
    locks, which no compiler can follow.
    """
    compiler: Any = module._compiler_ctx
    if compiler is None:
        return
    for name in STEPS:
        vars(module).pop(name, None)
    compiled_in_place(module.model, compiler["dynamo_ctx"])
