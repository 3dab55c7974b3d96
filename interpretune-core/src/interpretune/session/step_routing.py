"""Runs the steps of a user's class inside the stack's hooks, whoever calls them: a loop, a trainer, or the user."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from interpretune.errors import TrainingError

TRAINING_STEP = "training_step"
PREDICT_STEP = "predict_step"
ANALYSIS_STEP = "analysis_test_step"
STEP_NAMES = (TRAINING_STEP, "validation_step", "test_step", PREDICT_STEP, ANALYSIS_STEP)
"""Methods that are steps."""


def route_steps(user_class: type, bases: Iterable[type]) -> dict[str, Callable[..., Any]]:
    """Steps that a user's class defines itself, not as stubs of ``bases``, each inside ``it_run_step``; by name."""
    framework = {ancestor for base in bases for ancestor in base.__mro__}
    routed = {}
    for name in STEP_NAMES:
        owner = next((ancestor for ancestor in user_class.__mro__ if name in vars(ancestor)), None)
        if owner is not None and owner not in framework:
            routed[name] = _route(name, getattr(user_class, name))
    return routed


def _route(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def routed(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = self.hook.it_run_step(module=self, step_name=name, step=functools.partial(step, self, *args, **kwargs))
        if name == TRAINING_STEP:
            check_loss(result, type(self).__name__)
        return result

    return routed


def loss_of(result: Any) -> Tensor | None:
    """The loss in what a training step returned: a tensor, a mapping with ``loss``, or None to skip the batch."""
    loss = result.get("loss") if isinstance(result, Mapping) else result
    return loss if isinstance(loss, Tensor) else None


def check_loss(result: Any, owner: str) -> None:
    """Refuse what is no finite number with a gradient, where a training step returned it (``TrainingError``)."""
    if result is None:
        return
    loss = loss_of(result)
    if loss is None:
        found = f"a mapping with the keys {sorted(result)}" if isinstance(result, Mapping) else type(result).__name__
        raise TrainingError(
            f"{owner}.training_step returned {found} where a loss is expected. Return a scalar tensor, a "
            "mapping with the key 'loss', or None to skip the batch."
        )
    if loss.numel() != 1:
        raise TrainingError(
            f"{owner}.training_step returned a loss of shape {tuple(loss.shape)}; a loss is one number. Reduce it, for "
            "example with loss.mean()."
        )
    if not torch.isfinite(loss.detach()).item():
        raise TrainingError(
            f"{owner}.training_step returned the loss {loss.item()}. Nothing was changed by this batch. Lower the "
            "learning rate, clip gradients, or look for empty rows and labels outside the task's range."
        )
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise TrainingError(
            f"{owner}.training_step returned a loss that depends on no trainable parameter. Compute it from the "
            "model's output without detach(), and train some parameter (freeze=False)."
        )
