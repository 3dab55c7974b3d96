"""Checkpoints of core's training: folders that are whole or absent, weights in safetensors, nothing that runs code."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Container, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import asdict as attrs_asdict, frozen
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from interpretune.errors import CacheError, CheckpointError
from interpretune.plugins.declaration import Level
from interpretune.system.cache_folder import MANIFEST, build_once, damage_of, is_whole
from interpretune.system.placement import in_memory
from interpretune.system.whole_file import why_not_written
from interpretune.training.config import LAST, FitState

if TYPE_CHECKING:
    from interpretune.plugins.contributions import OptimizerSetup
    from interpretune.session.module import ITModule

FOLDER = "checkpoints"
WEIGHTS = "weights.safetensors"
TRAINING_STATE = "training_state.pt"
ABOUT = "about.json"
SAMPLED = 64
"""Values of each frozen parameter that identify it."""
DAMAGED = (OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError, pickle.UnpicklingError)
"""What reading a damaged file raises."""


@frozen(kw_only=True)
class CheckpointIdentity:
    """What a checkpoint belongs to.

    Attributes:
        stack: Adapters that decide what the module is made of; extensions may come and go.
        parameters: Hash of the names and shapes of all parameters.
        frozen_weights: Hash of a sample of the frozen parameters, which are not in the checkpoint. A frozen view of
            trained ones changes with them and is left out.
    """

    stack: tuple[str, ...]
    parameters: str
    frozen_weights: str

    @classmethod
    def of(cls, module: ITModule, trained: Container[str] | None = None) -> CheckpointIdentity:
        """The identity of a session's module.

        Args:
            module: The module.
            trained: Names of the parameters that count as trained; None: those that require a gradient.
        """
        adapters = module.context.adapters if module.context is not None else ()
        shapes, sample = hashlib.sha256(), hashlib.sha256()
        parameters = dict(module.named_parameters())
        learns = {
            name for name, item in parameters.items() if (item.requires_grad if trained is None else name in trained)
        }
        changing = {_memory(parameters[name]) for name in learns}
        for name, parameter in parameters.items():
            shapes.update(f"{name} {tuple(parameter.shape)}".encode())
            if name not in learns and (not parameter.numel() or _memory(parameter) not in changing):
                sample.update(_sample(in_memory(module, name)))
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
    """Write a checkpoint of trainable weights, buffers, optimizer, schedulers and position; returns its folder.

    A process that is killed meanwhile leaves the earlier checkpoints as they were, and no half-written one. One of the
    same name is replaced.

    Raises:
        CheckpointError: It cannot be written.
    """
    place = run_dir / FOLDER / checkpoint_name(state)
    about = {"identity": attrs_asdict(CheckpointIdentity.of(module)), "state": asdict(state)}

    weights = _weights(module)
    training = {
        "classes": _class_names(setup),
        "optimizers": [optimizer.state_dict() for optimizer in setup.optimizers],
        "schedulers": [item.scheduler.state_dict() for item in setup.schedulers],
        "extra": dict(extra),
    }

    def write(folder: Path) -> None:
        save_file(weights, folder / WEIGHTS)
        torch.save(training, folder / TRAINING_STATE)
        (folder / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")

    try:
        return build_once(place, write, force=True)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap what the system says
        cause = error.__cause__ if isinstance(error, CacheError) and error.__cause__ is not None else error
        raise CheckpointError(
            f"{why_not_written(place, cause, 'choose another run_dir')} Nothing half-written was left, and earlier "
            "checkpoints are as they were: resume_from='last' goes on from there."
        ) from error


def checkpoint_name(state: FitState) -> str:
    """Name of a checkpoint's folder; names are in the order of time."""
    return f"step={state.global_step:08d}-epoch={state.epoch:05d}"


def whole_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run whose files are there with their sizes, oldest first; contents are not looked at."""
    return [folder for folder in _checkpoints(run_dir) if is_whole(folder, by_content=False)]


def _checkpoints(run_dir: Path) -> list[Path]:
    return sorted(folder for folder in (run_dir / FOLDER).glob("step=*") if folder.is_dir())


def is_of_run(folder: Path, run_dir: Path) -> bool:
    """Whether a checkpoint lies among those of a run."""
    return folder.parent.resolve() == (run_dir / FOLDER).resolve()


def find_checkpoint(resume_from: str | Path, run_dir: Path | None) -> Path | None:
    """The checkpoint to resume from, whose content is what was written; None: ``last`` is asked for, and there is none.

    ``last`` passes over damaged ones, and a warning says so.

    Raises:
        CheckpointError: The named checkpoint is absent or damaged, or all are.
    """
    if str(resume_from) == LAST:
        if run_dir is None:
            raise CheckpointError("resume_from='last' needs run_dir, the folder of the run to go on with.")
        return _newest_whole(run_dir)
    folder = Path(resume_from).expanduser()
    if not folder.is_dir() or not os.path.lexists(folder / MANIFEST):
        raise CheckpointError(
            f"{folder} is no whole checkpoint. Name a folder step=... in the folder {FOLDER!r} of a run, or write "
            "'last'."
        )
    if (damage := damage_of(folder)) is not None:
        raise CheckpointError(
            f"{folder} is no whole checkpoint and cannot be read: {damage}. Resume from another one, or write 'last' "
            "for the newest that is whole."
        )
    return folder


def _newest_whole(run_dir: Path) -> Path | None:
    passed: list[str] = []
    for folder in reversed(_checkpoints(run_dir)):
        damage = damage_of(folder)
        if damage is None:
            if passed:
                warnings.warn(f"{'; '.join(passed)}. Going on from {folder.name}.", stacklevel=4)
            return folder
        passed.append(f"the checkpoint {folder} is damaged: {damage}")
    if passed:
        raise CheckpointError(
            f"{run_dir} has no checkpoint that is whole: {'; '.join(passed)}. Begin anew in another run_dir."
        )
    return None


def load_checkpoint(
    folder: Path, module: ITModule, setup: OptimizerSetup | None = None
) -> tuple[FitState, Mapping[str, Any]]:
    """Put a checkpoint's weights into the module, and its training state into the optimizer and schedulers.

    Nothing is changed unless all of it fits. Returns the position of the training, and the further values saved.

    Args:
        folder: The checkpoint.
        module: The session's module.
        setup: Its optimizers and schedulers; None: only the weights are wanted.

    Raises:
        CheckpointError: It cannot be read, or belongs to another stack, model or optimizer.
    """
    where = f"the checkpoint {folder}"
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        identity, state = dict(about["identity"]), FitState(**about["state"])
        weights = load_file(folder / WEIGHTS, device="cpu")
        training = torch.load(folder / TRAINING_STATE, weights_only=True, map_location="cpu") if setup else {}
    except DAMAGED as error:
        raise CheckpointError(
            f"T{where[1:]} cannot be read: {type(error).__name__}: {error}. Resume from another one."
        ) from error
    CheckpointIdentity.of(module, trained=weights).check(identity, where)
    everything = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    own = _own_tensors(module) if setup else {name: everything[name] for name in weights if name in everything}
    differing = sorted(
        name
        for name in own.keys() | weights.keys()
        if not (name in own and name in weights and own[name].shape == weights[name].shape)
    )
    if differing:
        raise CheckpointError(
            f"{where} belongs to another choice of trained parameters: only one of the two holds, in this shape, "
            f"{', '.join(differing[:5])}. Freeze the same parameters as when the checkpoint was saved."
        )
    if setup:
        _load_training_state(training, setup, where)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
    return state, training.get("extra", {})


def delete_old(run_dir: Path, keep: int, best: str | None) -> None:
    """Delete all but the newest checkpoints and the best, and what a killed process left of one that it deleted."""
    kept = {folder.name for folder in whole_checkpoints(run_dir)[-keep:]} | {best}
    for folder in _checkpoints(run_dir):
        if folder.name not in kept:
            _delete(folder)


def delete_later(run_dir: Path, folder: Path) -> None:
    """Delete the checkpoints of a run that come after one: they are not of the training that goes on from it."""
    for later in _checkpoints(run_dir):
        if later.name > folder.name:
            _delete(later)


def _delete(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)


def _load_training_state(saved: Mapping[str, Any], setup: OptimizerSetup, where: str) -> None:
    try:
        if saved["classes"] != _class_names(setup):
            raise ValueError(f"it was made with {saved['classes']}, and this session has {_class_names(setup)}")
        for optimizer, state in zip(setup.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        for item, state in zip(setup.schedulers, saved["schedulers"], strict=True):
            item.scheduler.load_state_dict(state)
    except DAMAGED as error:
        raise CheckpointError(
            f"The optimizer state of {where} does not fit this session: {error}. Use the same optimizer_init and "
            "lr_scheduler_init as when it was made."
        ) from error


def _class_names(setup: OptimizerSetup) -> list[str]:
    return [type(item).__name__ for item in (*setup.optimizers, *(item.scheduler for item in setup.schedulers))]


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and persistent buffers by name: what a checkpoint holds."""
    parameters = {name: item for name, item in module.named_parameters() if item.requires_grad}
    kept = module.state_dict(keep_vars=True)
    buffers = {name: item for name, item in module.named_buffers() if name in kept}
    return {**parameters, **buffers}


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU: safetensors takes no views of common memory."""
    return {name: item.detach().cpu().clone().contiguous() for name, item in _own_tensors(module).items()}


def _memory(parameter: Tensor) -> int:
    return parameter.untyped_storage().data_ptr()


def _sample(parameter: Tensor) -> bytes:
    values = parameter.detach().flatten()
    step = max(1, values.numel() // SAMPLED)
    chosen = values[::step][:SAMPLED].float().cpu()
    return chosen.numpy().tobytes()
