"""Makes the session of a checkpoint again, with the weights in it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interpretune import CheckpointError, ConfigurationError, ITSession, ITSessionConfig
from interpretune.training import CheckpointIdentity
from interpretune_lightning.stored_session import WHAT_TO_DO, read_session
from interpretune_lightning.whole_files import WholeFiles

CHECKPOINT_KEY = "interpretune"
"""Under this key Lightning's checkpoints say which stack, which model and which session they belong to."""
SESSION, LACKING = "session", "session_lacks"
"""Below it: the session's configuration, and what of it could not be stored."""


def load_session(
    checkpoint_path: str | Path,
    session_cfg: ITSessionConfig | None = None,
    *,
    map_location: Any = None,
    strict: bool = True,
) -> ITSession:
    """The session of a checkpoint of Lightning's Trainer, with the trained weights.

    ``trainer.test(**load_session(path))`` goes on with it. The checkpoint holds the configuration, if that consists of
    plain values and of classes that can be imported, without credentials, device, cache folder and ``trainer_kwargs``.
    Nothing in a checkpoint is executed: see ``read_session`` in ``stored_session`` for what is imported.

    Args:
        checkpoint_path: The file.
        session_cfg: What the session is made of; None: what the checkpoint says.
        map_location: Where weights are read to, as ``torch.load`` takes it.
        strict: Whether the weights must be those of all parameters.

    Raises:
        CheckpointError: It cannot be read, was not made by a session, belongs to another stack or model, or does not
            hold the session's configuration.
        ConfigurationError: ``session_cfg`` does not stack ``lightning``.
    """
    where = f"The checkpoint {checkpoint_path}"
    checkpoint = _read(Path(checkpoint_path).expanduser(), where, map_location)
    about = checkpoint.get(CHECKPOINT_KEY) if isinstance(checkpoint, Mapping) else None
    if about is None:
        raise CheckpointError(
            f"{where} was not made by an interpretune session. Make the session yourself and load its weights: "
            "session['model'].load_state_dict(torch.load(path, weights_only=True)['state_dict'])."
        )
    if not isinstance(about, Mapping) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise CheckpointError(
            f"{where} is damaged: its entries {CHECKPOINT_KEY!r} and 'state_dict' are to be mappings. Load another one."
        )
    if session_cfg is None:
        if not about.get(SESSION):
            lacking = "; ".join(about.get(LACKING) or ["it was made before checkpoints had it"])
            raise CheckpointError(f"{where} does not hold the configuration of its session: {lacking}. {WHAT_TO_DO}")
        session_cfg = read_session(about[SESSION], where)
    session = ITSession(session_cfg)
    if "model" not in session or not hasattr(session.module, "on_load_checkpoint"):
        raise ConfigurationError(
            f"session_cfg stacks {session.context.names}, and {where[0].lower()}{where[1:]} is one of Lightning's. "
            "Name 'lightning' in adapter_ctx."
        )
    module: Any = session["model"]
    module._it_identity = CheckpointIdentity.of(module)
    module.on_load_checkpoint(checkpoint)
    try:
        module.load_state_dict(checkpoint["state_dict"], strict=strict)
    except RuntimeError as error:  # what torch raises for names and shapes
        raise CheckpointError(
            f"The weights of {where[0].lower()}{where[1:]} are not those of the session's module: {error}. "
            f"{WHAT_TO_DO} If only parameters are missing or too many, strict=False leaves them as they are."
        ) from error
    return session


def _read(path: Path, where: str, map_location: Any) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{where} does not exist.")
    try:
        return WholeFiles().load_checkpoint(path, map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{where} holds objects that only code in it could make again, which is not run: {error}. Save no objects "
            "but tensors and plain values in it (on_save_checkpoint, save_hyperparameters, states of callbacks)."
        ) from error
