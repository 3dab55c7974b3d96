"""Where the canonical hook points of a decoder are in a TransformerLens model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from interpretune.activations import (
    ATTN_Z,
    FINAL_NORM,
    IN,
    MLP_ACT,
    MLP_IN,
    OUT,
    RESID_MID,
    aliases,
    canonical_names,
    in_place,
    split_layer,
)
from interpretune.analysis import Edit

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint

NORMS_OF_BLOCKS = ("ln1", "ln1_post", "ln2", "ln2_post")

Hooked = Callable[[Edit], AbstractContextManager[None]]
"""Makes an edit for the duration of a block."""


def decoder_hook_points(model: Any) -> Iterator[tuple[str, Hooked]]:
    """Canonical names of the hook points that a model has, each with what makes an edit there."""
    points = model.hook_dict
    is_bridge = hasattr(model, "original_model")
    for name, known in canonical_names(len(model.blocks)):
        point = next((points[alias] for alias in aliases(name) if alias in points), None)
        if known.name == MLP_ACT and point is points.get(f"blocks.{_layer(name)}.mlp.hook_out"):
            continue  # so bridges have it of a mixture of experts
        if point is not None:
            yield name, _at_point(point, flat=known.name == ATTN_Z, carried=is_bridge and known.name == RESID_MID)
        elif known.name == MLP_IN and hasattr(block := model.blocks[_layer(name)], "mlp"):
            yield name, _at_input(block.mlp)
        elif name == FINAL_NORM and "unembed.hook_in" in points:
            yield name, _at_point(points["unembed.hook_in"])


def norms_of(model: Any) -> Iterator[tuple[str, str, str, nn.Module]]:
    """Names of the hook points before, in and after each norm that is not inside attention, and the norm."""
    owners = [(f"blocks.{i}.{name}", block, name) for i, block in enumerate(model.blocks) for name in NORMS_OF_BLOCKS]
    before, after = (".hook_in", ".hook_out") if hasattr(model, "original_model") else (f":{IN}", f":{OUT}")
    for path, owner, name in (*owners, ("ln_final", model, "ln_final")):
        if isinstance(norm := getattr(owner, name, None), nn.Module):
            yield path + before, f"{path}.hook_normalized", path + after, norm


def around_norms(model: Any) -> Iterator[tuple[str, Hooked]]:
    """What is there before and after the norms of a ``HookedTransformer``, which has no hook points for all of it."""
    for before, _, after, norm in norms_of(model):
        if before.endswith(f":{IN}"):
            yield before, _at_input(norm)
            yield after, _at_output(norm)


def _layer(name: str) -> int:
    return (split_layer(name) or (0,))[0]


def _at_point(point: HookPoint, *, flat: bool = False, carried: bool = False) -> Hooked:
    def hooked(edit: Edit) -> AbstractContextManager[None]:
        made = _on_flat(edit) if flat else edit
        return hooked_point(point, in_place(made) if carried else made)

    return hooked


def _on_flat(edit: Edit) -> Edit:
    def apply(activations: Tensor) -> Tensor:
        flat = activations.flatten(2)
        edited = edit(flat)
        return activations if edited is flat else edited.reshape(activations.shape)

    return apply


def _at_input(module: nn.Module) -> Hooked:
    """``HookedTransformer`` has no hook point after the norm's gain, where its MLP reads."""
    return _while(lambda edit: module.register_forward_pre_hook(lambda _, args: (edit(args[0]), *args[1:])))


def _at_output(module: nn.Module) -> Hooked:
    return _while(lambda edit: module.register_forward_hook(lambda _, __, output: edit(output)))


def _while(add: Callable[[Edit], Any]) -> Hooked:
    """An edit by one of torch's own hooks."""

    @contextlib.contextmanager
    def hooked(edit: Edit) -> Iterator[None]:
        handle = add(edit)
        try:
            yield
        finally:
            handle.remove()

    return hooked


@contextlib.contextmanager
def hooked_point(point: HookPoint, edit: Edit) -> Iterator[None]:
    """Make an edit at one of TransformerLens's hook points for the duration of a block."""

    def apply(activations: Tensor, hook: HookPoint) -> Tensor:
        return edit(activations)

    try:
        try:
            point.add_hook(apply)
            yield
        finally:
            _take_off(point, apply)
    finally:
        _take_off(point, apply)  # an interrupt may have come in the first


def _take_off(point: HookPoint, hook: Any) -> None:
    for handle in [handle for handle in point.fwd_hooks if handle.user_hook is hook]:
        handle.hook.remove()
        point.fwd_hooks.remove(handle)
