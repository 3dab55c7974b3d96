"""A user's module that notes what a loop does around its steps."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from interpretune.system.torch_state import eval_mode
from interpretune.testing.user_classes import UserModule

KEPT_MOST = 4
"""Tensors of earlier batches that may be alive: those of the last one, with its loss."""


@frozen(eq=False)
class StepNote:
    """What a step found.

    Attributes:
        step: Its name.
        batch: Copies of the batch's tensors.
        modes: Whether each part of the model is in train mode, by path.
        gradients: Whether gradients are on.
        alive: Tensors of this step's earlier batches, and their losses, that somebody still holds.
    """

    step: str
    batch: Mapping[str, Tensor]
    modes: Mapping[str, bool]
    gradients: bool
    alive: int


class NotingModule(UserModule):
    """Notes each step, and computes in evaluation mode, so that losses can be computed again."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """One step of training."""
        note(self, "training_step", batch)
        with eval_mode(self.model):
            loss = super().training_step(batch, batch_idx)
        watched(self, "training_step").append(weakref.ref(loss))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """One step of validation."""
        note(self, "validation_step", batch)
        super().validation_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """One step of a test."""
        note(self, "test_step", batch)
        return super().test_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Predictions."""
        note(self, "predict_step", batch)
        return super().predict_step(batch, batch_idx)


def note(module: Any, step: str, batch: Mapping[str, Any]) -> None:
    """Note a step that begins."""
    references = watched(module, step)
    alive = sum(reference() is not None for reference in references)
    notes = notes_of(module)
    if alive > KEPT_MOST and all(item.alive <= KEPT_MOST for item in notes):  # or only waiting for the collector
        gc.collect()
        alive = sum(reference() is not None for reference in references)
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    copies = {name: value.detach().clone() for name, value in tensors.items()}
    notes.append(StepNote(step, copies, modes_of(module.model), torch.is_grad_enabled(), alive))
    references += [weakref.ref(value) for value in tensors.values()]


def notes_of(module: Any, step: str | None = None) -> list[StepNote]:
    """What was noted so far; without a name of a step the list itself."""
    notes: list[StepNote] = vars(module).setdefault("step_notes", [])
    return notes if step is None else [item for item in notes if item.step == step]


def watched(module: Any, step: str) -> list[weakref.ref[Tensor]]:
    """Weak references to the tensors of a step's batches, and to losses."""
    return vars(module).setdefault("watched", {}).setdefault(step, [])


def modes_of(model: nn.Module) -> dict[str, bool]:
    """Whether each part of a model is in train mode, by path."""
    return {path or "the model": part.training for path, part in model.named_modules()}


def other_modes(before: Mapping[str, bool], now: Mapping[str, bool]) -> Sequence[str]:
    """What is in another mode than before, in words."""
    words = {True: "train", False: "evaluation"}
    return [f"{path} ({words[now[path]]} mode)" for path in before if path in now and now[path] is not before[path]]
