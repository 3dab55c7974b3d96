"""Work that TransformerLens does and nobody needs in a replay: computed twice, thrown away, or kept for hooks.

Nothing here changes a number. Where somebody hooks a norm or an MLP, or has put something else in the place of a part
of it, all of it is done; attention's own result is put aside in a replay whoever looks. Methods are replaced in single
modules while a context lasts, for the thread and context that asked for it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformer_lens.components import GatedMLP
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components.normalization import NormalizationBridge

from interpretune.activations import replaced_methods, standing_method

NATIVE_NORM = "_hf_autograd_forward_with_hooks"
"""How a bridge's norm runs the norm of its model and computes, beside it, what its hook points show."""
KEYS_IN_USE = "_update_kv_cache"
"""Where a bridge's attention adds a cache to its keys and values, before it makes scores."""
NORM_POINTS = ("hook_in", "hook_scale", "hook_normalized", "hook_out")
MLP_POINTS = ("hook_pre", "hook_pre_linear", "hook_post")
GATED_MLP = GatedMLP.forward
"""What is computed in one tensor instead; where a class has another by then, that one runs."""


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


def spared_in_hooked_transformers(blocks: Sequence[Any]) -> AbstractContextManager[None]:
    """What every forward of a hooked transformer can do without.

    It norms the input of attention three times, for queries, keys and values, and keeps five tensors of a gated MLP of
    which each is read once.
    """
    once = _OnlyOnce()
    methods: list[tuple[nn.Module, str, Callable[..., Any]]] = []
    for block in blocks:
        methods.append((block.ln1, "forward", once.forward_of(block.ln1)))
        mlp: Any = getattr(block, "mlp", None)
        if type(mlp) is GatedMLP and not mlp.cfg.is_layer_norm_activation():
            methods.append((mlp, "forward", _in_place(mlp)))
    return replaced_methods(methods)


def own_attention_spared(blocks: Sequence[Any]) -> AbstractContextManager[None]:
    """Let blocks of a hooked transformer not attend among a row's tokens: something else is put in."""
    scores = [(block.attn, "calculate_attention_scores", _no_scores) for block in blocks]
    return replaced_methods([*scores, *((block.attn, "calculate_z_scores", _empty(block.attn)) for block in blocks)])


def _as_made(module: Any, points: Sequence[str]) -> bool:
    """Whether nobody hooks some hook points of a module, or has put something in their place."""
    found = [part for name in points if (part := getattr(module, name, None)) is not None]
    return all(
        isinstance(point, HookPoint) and not _is_watched(point) and "forward" not in vars(point) for point in found
    )


def _is_watched(module: nn.Module) -> bool:
    before, after = module._forward_pre_hooks, module._forward_hooks
    return bool(before or after or module._backward_pre_hooks or module._backward_hooks)


def _norm_alone(norm: Any) -> Callable[[Tensor], Tensor]:
    method = standing_method(norm, NATIVE_NORM)

    def forward(activations: Tensor) -> Tensor:
        if not _as_made(norm, NORM_POINTS):
            return method(activations)
        return norm.original_component(activations).to(activations.dtype)

    return forward


def _no_keys(keys: Tensor, values: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    """Keys and values ``[n, heads, 0, d_head]``: a bridge's own attention, which is thrown away, has nothing to do."""
    return keys[:, :, :0], values[:, :, :0]


class _OnlyOnce:
    """Keeps the last result of the norms that it stands in for, and what it was of."""

    def __init__(self) -> None:
        self._last: tuple[nn.Module, Tensor, Tensor] | None = None

    def forward_of(self, norm: Any) -> Callable[[Tensor], Tensor]:
        method = standing_method(norm, "forward")

        def forward(activations: Tensor) -> Tensor:
            if _is_watched(norm) or not _as_made(norm, NORM_POINTS):  # a hook may change what it is given
                return method(activations)
            if self._last is None or self._last[0] is not norm or self._last[1] is not activations:
                self._last = norm, activations, method(activations)
            return self._last[2]

        return forward


def _in_place(mlp: Any) -> Callable[[Tensor], Tensor]:
    """The forward of ``GatedMLP``, multiplying and adding in one tensor: a processor's cache has no room for five."""
    method = standing_method(mlp, "forward")
    usual = GatedMLP.forward is GATED_MLP and "forward" not in vars(mlp)

    def forward(activations: Tensor) -> Tensor:
        if not usual or torch.is_grad_enabled() or not _as_made(mlp, MLP_POINTS):
            return method(activations)
        activations = activations.to(mlp.W_gate.device)
        inner = mlp.act_fn(linear(activations, mlp.W_gate.T.contiguous()))
        inner *= linear(activations, mlp.W_in.T.contiguous())
        inner += mlp.b_in
        return linear(inner, mlp.W_out.T.contiguous(), mlp.b_out)

    return forward


def _no_scores(query: Tensor, _: Tensor) -> Tensor:
    return query.new_zeros(len(query), 1, query.shape[1], query.shape[1])


def _empty(attention: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def mixed(value: Tensor, _: Tensor) -> Tensor:
        shape = (*value.shape[:2], attention.cfg.n_heads, value.shape[-1])
        result: Tensor = attention.hook_z(value.new_empty(shape))
        return result

    return mixed
