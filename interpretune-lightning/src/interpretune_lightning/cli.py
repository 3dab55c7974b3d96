"""A command line for sessions: ``LightningCLI`` with a session in the place of model and data."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from interpretune import ConfigurationError, ITSession, read_session
from interpretune.system import without_credentials

SESSION = "session"
ADAPTER = "lightning"


class SavedConfig(SaveConfigCallback):
    """Saves the configuration of a run in its folder, without credentials."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, *args: Any, **kwargs: Any) -> None:
        super().__init__(parser, _cleaned(config, without_credentials(_plain(config))), *args, **kwargs)


class SessionCLI(LightningCLI):
    """``python train.py fit --config train.yaml``, where ``train.py`` calls ``SessionCLI()``.

    The file has ``trainer``, as ``LightningCLI`` reads it, and ``session``, as ``interpretune run`` does. It overrides
    no more of ``LightningCLI`` than where models and data come from.

    Attributes:
        session: The session that was made.
    """

    session: ITSession

    def __init__(self, **options: Any) -> None:
        """Read the arguments, make the session, and run what the command asks for.

        Args:
            **options: Of ``LightningCLI``, but for those of models and data.

        Raises:
            ConfigurationError: The session does not stack ``lightning``, or is wrong otherwise.
        """
        options.setdefault("save_config_callback", SavedConfig)
        super().__init__(auto_configure_optimizers=False, load_from_checkpoint_support=False, **options)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The trainer, and the session."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        defaults = {name: value for name, value in self.trainer_defaults.items() if name != "callbacks"}
        parser.set_defaults({f"trainer.{name}": value for name, value in defaults.items()})
        parser.add_argument(
            f"--{SESSION}",
            type=dict,  # of Any, classes named in it would be made
            required=True,
            help="What the session is made of: adapter_ctx, module_cls, shared_cfg, datamodule_cfg, module_cfg, ...",
        )

    def instantiate_classes(self) -> None:
        """Make the trainer, and the session with its module and data module."""
        self.config_init = self.parser.instantiate(self.config)
        written = {"adapter_ctx": [ADAPTER], **_plain(self._get(self.config, SESSION))}
        names = written["adapter_ctx"]
        if ADAPTER not in ([names] if isinstance(names, str) else names):
            raise ConfigurationError(
                f"session.adapter_ctx is {names!r}, and Lightning's Trainer is to run the session. Add {ADAPTER!r}."
            )
        self.session = ITSession(read_session(written))
        self.model, self.datamodule = self.session["model"], self.session["datamodule"]
        self.trainer = self.instantiate_trainer()

    def _parse_ckpt_path(self) -> None:
        """A checkpoint's hyperparameters are no arguments of a session."""


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def _cleaned(value: Any, plain: Any) -> Any:
    """A configuration with the texts of a plain copy, in the form that its parser can save."""
    if isinstance(value, Namespace) and isinstance(plain, dict):
        made = value.clone()
        vars(made).update({name: _cleaned(item, plain[name]) for name, item in vars(value).items()})
        return made
    if isinstance(value, (list, tuple)) and isinstance(plain, list):
        return type(value)(_cleaned(item, copied) for item, copied in zip(value, plain, strict=True))
    return plain
