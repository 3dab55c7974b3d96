"""Work that hooked transformers do and nobody needs in a replay; see ``interpretune_tlens.spared_work``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformer_lens.components import GatedMLP

from interpretune.activations import replaced_methods, standing_method
from interpretune_tlens.spared_work import NORM_POINTS, as_made, is_watched

MLP_POINTS = ("hook_pre", "hook_pre_linear", "hook_post")
GATED_MLP = GatedMLP.forward
"""What is computed in one tensor instead; where a class has another by then, that one runs."""


def spared(blocks: Sequence[Any]) -> AbstractContextManager[None]:
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


def attention_spared(blocks: Sequence[Any]) -> AbstractContextManager[None]:
    """Let blocks of a hooked transformer not attend among a row's tokens: something else is put in."""
    scores = [(block.attn, "calculate_attention_scores", _no_scores) for block in blocks]
    return replaced_methods([*scores, *((block.attn, "calculate_z_scores", _empty(block.attn)) for block in blocks)])


class _OnlyOnce:
    """Keeps the last result of the norms that it stands in for, and what it was of."""

    def __init__(self) -> None:
        self._last: tuple[nn.Module, Tensor, Tensor] | None = None

    def forward_of(self, norm: Any) -> Callable[[Tensor], Tensor]:
        method = standing_method(norm, "forward")

        def forward(activations: Tensor) -> Tensor:
            if is_watched(norm) or not as_made(norm, NORM_POINTS):  # a hook may change what it is given
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
        if not usual or torch.is_grad_enabled() or not as_made(mlp, MLP_POINTS):
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
