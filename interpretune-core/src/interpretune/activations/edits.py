"""Edits of what a module takes and returns, for backends whose hook points are the modules of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from interpretune.errors import AnalysisError

Edit = Callable[[Tensor], Tensor]
"""Takes the activations at a hook point, ``[batch, pos, ...]``, and returns their replacement."""

Observer = Callable[[Tensor], None]
"""Receives activations ``[batch, pos, ...]`` and changes nothing."""

IN = "in"
"""The input of a module, as a side of a hook point."""
OUT = "out"
"""The output of a module, as a side of a hook point."""
CARRIED = "carried"
"""The input of a module, together with the skip connection around it."""


def edited_inputs(args: Sequence[Any], kwargs: Mapping[str, Any], edit: Edit) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a module, with the first tensor edited; unchanged if there is none."""
    for i, value in enumerate(args):
        if isinstance(value, Tensor):
            return (*args[:i], edit(value), *args[i + 1 :]), dict(kwargs)
    for name, value in kwargs.items():
        if isinstance(value, Tensor):
            return tuple(args), {**kwargs, name: edit(value)}
    return tuple(args), dict(kwargs)


def edited_output(output: Any, edit: Edit) -> Any:
    """The output of a module, with its tensor, or the first of several, edited.

    The same object if there is no tensor, or if the edit returns its input.
    """
    if isinstance(output, Tensor):
        return edit(output)
    if isinstance(output, ModelOutput):
        first = next((name for name, value in output.items() if isinstance(value, Tensor)), None)
        if first is not None and (edited := edit(output[first])) is not output[first]:
            output[first] = edited
        return output
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        edited = edit(output[0])
        return output if edited is output[0] else (edited, *output[1:])
    return output


def in_place(edit: Edit) -> Edit:
    """An edit that writes its result into the tensor it receives, for other holders of that tensor.

    This way an edit of the input of a sublayer reaches the skip connection around it. The edit itself gets a copy,
    because what it keeps for a backward must not change.
    """

    def apply(activations: Tensor) -> Tensor:
        edited = _edited_copy(edit, activations.clone())
        return activations if edited is None else activations.copy_(edited)

    return apply


def _edited_copy(edit: Edit, copy: Tensor) -> Tensor | None:
    """What an edit makes of a copy of its own; None where it returns it and has written nothing into it."""
    counts = not copy.is_inference()  # torch counts changes in place, except in inference mode
    version = copy._version if counts else 0
    edited = edit(copy)
    return None if edited is copy and counts and copy._version == version else edited


def at_home(edit: Edit, home: torch.device) -> Edit:
    """An edit that reads and writes on one device, wherever the block is whose activations it is given."""

    def apply(activations: Tensor) -> Tensor:
        if activations.device == home:
            return edit(activations)
        edited = _edited_copy(edit, activations.to(home))
        return activations if edited is None else edited.to(activations.device)

    return apply


def in_turn(edits: Sequence[Edit]) -> Edit:
    """One edit that applies several, each to the result of the one before."""

    def apply(activations: Tensor) -> Tensor:
        for edit in edits:
            activations = edit(activations)
        return activations

    return apply


def watch(name: str, leaves: dict[str, Tensor]) -> Edit:
    """An edit that changes nothing and records the activations, to take gradients with respect to them.

    In a second run (``Splice.reads_ahead``), activations are the same tensor as in the first, so that gradients add up.

    Raises:
        AnalysisError: They differ from those of the first run.
    """

    def require(activations: Tensor) -> Tensor:
        if name in leaves:
            _check_same(name, leaves[name].detach(), activations.detach())
            return leaves[name]
        leaf = activations if activations.requires_grad else activations.detach().requires_grad_()
        leaves[name] = leaf
        return leaf

    return require


def _check_same(name: str, before: Tensor, now: Tensor) -> None:
    least = torch.finfo(now.dtype).eps ** 0.5
    if not torch.allclose(before, now, rtol=0, atol=least * max(1.0, before.abs().max().item())):
        raise AnalysisError(
            f"{name} are other latents before a latent model that reads at several hook points has written than after: "
            "they lie between its hook points, and their gradient is that of two numbers. Ask for them without it."
        )
