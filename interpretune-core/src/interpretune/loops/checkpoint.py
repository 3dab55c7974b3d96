"""Checkpoints of core's training: folders that are whole or absent, weights in safetensors, nothing pickled."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import asdict as attrs_asdict
from attrs import frozen
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from interpretune.cache_folder import build_once, is_whole
from interpretune.declaration import Level
from interpretune.errors import CheckpointError
from interpretune.loops.config import LAST, FitState

if TYPE_CHECKING:
    from interpretune.contributions import OptimizerSetup
    from interpretune.module import ITModule

FOLDER = "checkpoints"
WEIGHTS = "weights.safetensors"
TRAINING_STATE = "training_state.pt"
ABOUT = "about.json"
SAMPLED = 64
"""Values of each frozen parameter that identify it."""


@frozen(kw_only=True)
class Identity:
    """What a checkpoint belongs to.

    Attributes:
        stack: Adapters that decide what the module is made of; extensions may come and go.
        parameters: Hash of the names and shapes of all parameters.
        frozen_weights: Hash of a sample of the frozen parameters, which are not in the checkpoint.
    """

    stack: tuple[str, ...]
    parameters: str
    frozen_weights: str

    @classmethod
    def of(cls, module: ITModule) -> Identity:
        """The identity of a session's module."""
        adapters = module.context.adapters if module.context is not None else ()
        shapes, sample = hashlib.sha256(), hashlib.sha256()
        for name, parameter in module.named_parameters():
            shapes.update(f"{name} {tuple(parameter.shape)}".encode())
            if not parameter.requires_grad:
                sample.update(_sample(parameter))
        return cls(
            stack=tuple(item.name for item in adapters if item.declaration.level is not Level.extension),
            parameters=shapes.hexdigest()[:16],
            frozen_weights=sample.hexdigest()[:16],
        )

    def check(self, found: Mapping[str, Any], where: str, *, holds_frozen_weights: bool = False) -> None:
        """Compare with what a checkpoint says.

        Args:
            found: The identity in the checkpoint, as plain values.
            where: Name of the checkpoint for messages.
            holds_frozen_weights: Whether frozen parameters are in the checkpoint too, so that they need not agree.

        Raises:
            CheckpointError: It belongs to another stack or another model.
        """
        stack = tuple(found.get("stack", ()))
        if stack != self.stack:
            raise CheckpointError(
                f"{where} was made with the stack {stack}; this session stacks {self.stack}. Use "
                f"adapter_ctx={stack!r}, or a checkpoint of this stack. (To take weights from one stack to another, "
                "save the model with save_pretrained and name that folder as model_name_or_path.)"
            )
        if found.get("parameters") != self.parameters:
            raise CheckpointError(
                f"{where} belongs to another model: the names or shapes of its parameters differ from this session's. "
                "Configure the session as it was when the checkpoint was made."
            )
        if not holds_frozen_weights and found.get("frozen_weights") != self.frozen_weights:
            raise CheckpointError(
                f"{where} belongs to another model: this session's frozen weights have other values. Load the model "
                "that the checkpoint was trained on."
            )


def save_checkpoint(
    run_dir: Path, module: ITModule, setup: OptimizerSetup, state: FitState, extra: Mapping[str, Any]
) -> Path:
    """Write a checkpoint of trainable weights, buffers, optimizer, schedulers and position.

    A process that is killed meanwhile leaves the earlier checkpoints as they were, and no half-written one.

    Args:
        run_dir: The checkpoint becomes ``run_dir/checkpoints/step=...-epoch=...``.
        module: The session's module.
        setup: Its optimizers and schedulers.
        state: Position of the training.
        extra: Further tensors and plain values to restore (random states).

    Returns:
        The checkpoint's folder.
    """
    about = {"identity": attrs_asdict(Identity.of(module)), "state": asdict(state)}

    def write(folder: Path) -> None:
        save_file(_weights(module), folder / WEIGHTS)
        training = {
            "optimizers": [optimizer.state_dict() for optimizer in setup.optimizers],
            "schedulers": [item.scheduler.state_dict() for item in setup.schedulers],
            "extra": dict(extra),
        }
        torch.save(training, folder / TRAINING_STATE)
        (folder / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")

    return build_once(run_dir / FOLDER / checkpoint_name(state), write)


def checkpoint_name(state: FitState) -> str:
    """Name of a checkpoint's folder; names are in the order of time."""
    return f"step={state.global_step:08d}-epoch={state.epoch:05d}"


def whole_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run that are whole, oldest first."""
    return sorted(folder for folder in (run_dir / FOLDER).glob("step=*") if folder.is_dir() and is_whole(folder))


def find_checkpoint(resume_from: str | Path, run_dir: Path | None) -> Path | None:
    """The checkpoint to resume from; None where ``last`` is asked for and there is none.

    Raises:
        CheckpointError: The named checkpoint is absent or cut short.
    """
    if str(resume_from) == LAST:
        if run_dir is None:
            raise CheckpointError("resume_from='last' needs run_dir, the folder of the run to go on with.")
        return next(reversed(whole_checkpoints(run_dir)), None)
    folder = Path(resume_from).expanduser()
    if not is_whole(folder):
        raise CheckpointError(
            f"{folder} is no whole checkpoint. Name a folder step=... in the folder {FOLDER!r} of a run, or write "
            "'last'."
        )
    return folder


def load_weights(folder: Path, module: ITModule) -> FitState:
    """Put a checkpoint's weights into the module.

    Returns:
        The position of its training.

    Raises:
        CheckpointError: It cannot be read, or belongs to another stack or another model.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        Identity.of(module).check(about["identity"], f"The checkpoint {folder}")
        saved = load_file(folder / WEIGHTS, device="cpu")
        state = FitState(**about["state"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"The checkpoint {folder} cannot be read: {type(error).__name__}: {error}. Resume from another one."
        ) from error
    own = _own_tensors(module)
    if own.keys() != saved.keys():
        raise CheckpointError(
            f"The checkpoint {folder} belongs to another choice of trained parameters: only one of the two holds "
            f"{', '.join(sorted(own.keys() ^ saved.keys())[:5])}. Freeze and train what was frozen and trained then."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
    return state


def load_training_state(folder: Path, setup: OptimizerSetup) -> Mapping[str, Any]:
    """Put a checkpoint's optimizer and scheduler states into those of this session.

    Returns:
        The further values that were saved.

    Raises:
        CheckpointError: They do not fit.
    """
    try:
        saved = torch.load(folder / TRAINING_STATE, weights_only=True, map_location="cpu")
        for optimizer, state in zip(setup.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        for item, state in zip(setup.schedulers, saved["schedulers"], strict=True):
            item.scheduler.load_state_dict(state)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"The optimizer state of {folder} does not fit this session: {error}. Use the same optimizer_init and "
            "lr_scheduler_init as when it was made."
        ) from error
    extra: Mapping[str, Any] = saved["extra"]
    return extra


def delete_old(run_dir: Path, keep: int, best: str | None) -> None:
    """Delete all but the newest checkpoints and the best."""
    for folder in whole_checkpoints(run_dir)[:-keep]:
        if folder.name != best:
            shutil.rmtree(folder)


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and persistent buffers by name: what a checkpoint holds."""
    parameters = {name: item for name, item in module.named_parameters() if item.requires_grad}
    kept = module.state_dict(keep_vars=True)
    buffers = {name: item for name, item in module.named_buffers() if name in kept}
    return {**parameters, **buffers}


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU: safetensors takes no views of common memory."""
    return {name: item.detach().cpu().clone().contiguous() for name, item in _own_tensors(module).items()}


def _sample(parameter: Tensor) -> bytes:
    values = parameter.detach().flatten()
    step = max(1, values.numel() // SAMPLED)
    chosen = values[::step][:SAMPLED].float().cpu()
    return chosen.numpy().tobytes()
