"""Keeps eager attention in float64 from giving NaN for padded rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from interpretune.activations.eager import run_eagerly
from interpretune.system.model_lock import model_lock
from interpretune.system.own_context import OwnContext

LOWEST = torch.finfo(torch.float32).min


@contextlib.contextmanager
def blind_tokens_attend(
    model: nn.Module, find_blocks: Callable[[], Sequence[nn.Module]], attention_mask: Tensor
) -> Iterator[None]:
    """Let tokens that see nothing attend to everything, for the duration of a block.

    Such tokens are padding: before the first real token, or beyond a window. Eager attention adds the lowest number of
    the model's dtype to what is masked and normalises in float32, where the lowest number of float64 is minus infinity:
    a token that sees nothing gets NaN and passes it to every token of its row, since 0 x NaN is NaN. What real tokens
    see does not change.

    Args:
        model: The model; only float64 reaches below float32.
        find_blocks: Finds its blocks, which are handed masks ``[batch, heads, query, key]``; asked where needed.
        attention_mask: ``[batch, pos]``; without padding nothing is done.
    """
    if all(item.dtype != torch.float64 for item in islice(model.parameters(), 1)) or bool(attention_mask.all()):
        yield
        return

    def put(_: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(map(seeing, args)), {name: seeing(value) for name, value in kwargs.items()}

    with run_eagerly(model), OwnContext() as here:
        seeing = here.only_here(_seeing)
        with model_lock(model):
            handles = [block.register_forward_pre_hook(put, with_kwargs=True) for block in find_blocks()]
        try:
            yield
        finally:
            with model_lock(model):
                for handle in handles:
                    handle.remove()


def _seeing(value: Any) -> Any:
    """A mask without rows that see nothing, whether of truth values or to be added; anything else as it is."""
    if not isinstance(value, Tensor) or value.ndim != 4:
        return value
    if value.dtype == torch.bool:
        return value | ~value.any(dim=-1, keepdim=True)
    if value.is_floating_point():
        return value.masked_fill((value < LOWEST).all(dim=-1, keepdim=True), 0)
    return value
