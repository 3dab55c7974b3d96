"""Work that TransformerLens does and nobody needs in a replay: computed twice, thrown away, or kept for hooks.

Nothing here changes a number. Where somebody hooks a norm or an MLP, or has put something else in the place of a part
of it, all of it is done; attention's own result is put aside in a replay whoever looks. Methods are replaced in single
modules while a context lasts, for the thread and context that asked for it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components.normalization import NormalizationBridge

from interpretune.activations import replaced_methods, standing_method

NATIVE_NORM = "_hf_autograd_forward_with_hooks"
"""How a bridge's norm runs the norm of its model and computes, beside it, what its hook points show."""
KEYS_IN_USE = "_update_kv_cache"
"""Where a bridge's attention adds a cache to its keys and values, before it makes scores."""
NORM_POINTS = ("hook_in", "hook_scale", "hook_normalized", "hook_out")
"""Hook points of a norm."""


def spared_in_bridges(norms: Sequence[NormalizationBridge], blocks: Sequence[Any]) -> AbstractContextManager[None]:
    """What the replay of a bridge can do without: statistics of norms beside the norms, and its own attention.

    Both lean on private methods of TransformerLens; where they are missing, all is computed.

    Args:
        norms: All of the model.
        blocks: Those that the replay runs.
    """
    alone = [(norm, NATIVE_NORM, _norm_alone(norm)) for norm in norms if hasattr(norm, NATIVE_NORM)]
    empty = [(block.attn, KEYS_IN_USE, _no_keys) for block in blocks if hasattr(block.attn, KEYS_IN_USE)]
    return replaced_methods([*alone, *empty])


def as_made(module: Any, points: Sequence[str]) -> bool:
    """Whether nobody hooks some hook points of a module, or has put something in their place."""
    found = [part for name in points if (part := getattr(module, name, None)) is not None]
    return all(
        isinstance(point, HookPoint) and not is_watched(point) and "forward" not in vars(point) for point in found
    )


def is_watched(module: nn.Module) -> bool:
    """Whether a module has hooks."""
    before, after = module._forward_pre_hooks, module._forward_hooks
    return bool(before or after or module._backward_pre_hooks or module._backward_hooks)


def _norm_alone(norm: Any) -> Callable[[Tensor], Tensor]:
    method = standing_method(norm, NATIVE_NORM)

    def forward(activations: Tensor) -> Tensor:
        if not as_made(norm, NORM_POINTS):
            return method(activations)
        return norm.original_component(activations).to(activations.dtype)

    return forward


def _no_keys(keys: Tensor, values: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    """Keys and values ``[n, heads, 0, d_head]``: a bridge's own attention, which is thrown away, has nothing to do."""
    return keys[:, :, :0], values[:, :, :0]
