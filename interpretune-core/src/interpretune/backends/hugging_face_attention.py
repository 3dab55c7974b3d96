"""Attention functions of transformers' ``AttentionInterface`` that are put in for one thread and context."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from interpretune.activations.edits import Edit
from interpretune.activations.hook_names import ATTN_PATTERN, HEAD_INPUTS
from interpretune.errors import HookPointError
from interpretune.system.own_context import OwnContext
from interpretune.system.put_back import attribute_put_back

PATTERNS = "interpretune_patterns"
HARMLESS = frozenset({"position_ids", "cache_position"})
"""Tensors that models pass to attention functions and that say nothing more than the mask."""

_edits: ContextVar[Mapping[tuple[nn.Module, str], Edit]] = ContextVar("interpretune_pattern_edits")


@contextlib.contextmanager
def attention_in_place(model: nn.Module, name: str) -> Iterator[None]:
    """Let a model's attention go through the function of a name, in this thread and context."""
    configs: list[Any] = list(
        {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}.values()
    )
    with OwnContext() as here, attribute_put_back(configs, "_attn_implementation"):
        for config in configs:
            config._attn_implementation = _AttentionHere(name, config._attn_implementation, here)
        yield


@contextlib.contextmanager
def patterns_edited(model: nn.Module, edits: Mapping[tuple[nn.Module, str], Edit]) -> Iterator[None]:
    """Edit what is inside the attention of a model.

    Args:
        model: Its attention goes through ``AttentionInterface``.
        edits: By the attention module and the part: patterns ``[batch, query, heads, key]``, or queries, keys and
            values ``[batch, pos, heads, d_head]``; none: nothing is put in.
    """
    if not edits:
        yield
        return
    token = _edits.set({**_edits.get({}), **edits})
    try:
        with attention_in_place(model, PATTERNS):
            yield
    finally:
        _edits.reset(token)


class _AttentionHere(str):
    """Names an attention function for one thread and context, and the model's own for others.

    It is stored in the configuration, which all threads share: code that runs the model in the meantime gets the
    model's own mask and attention.
    """

    _name: str
    _elsewhere: str
    _here: OwnContext

    def __new__(cls, name: str, elsewhere: str, here: OwnContext) -> _AttentionHere:
        """Set both names, and what tells whether the caller is inside the block."""
        made = super().__new__(cls, name)
        made._name, made._elsewhere, made._here = name, elsewhere, here
        return made

    def __str__(self) -> str:
        return self._name if self._here.is_here() else str(self._elsewhere)

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __eq__(self, other: object) -> bool:
        return str(self) == other

    def __ne__(self, other: object) -> bool:
        return str(self) != other

    def __hash__(self) -> int:
        return hash(str(self))

    def __contains__(self, part: object) -> bool:
        return isinstance(part, str) and part in str(self)

    def startswith(self, *args: Any) -> bool:
        """The hash of the name for the caller."""
        return str(self).startswith(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is only the name."""
        return str, (str(self._elsewhere),)


def attention_with_patterns(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    """Attention whose pattern is handed to an edit; the signature is that of transformers.

    Raises:
        HookPointError: The model's attention has a part that is unknown here.
    """
    unknown = sorted(name for name, given in others.items() if isinstance(given, Tensor) and name not in HARMLESS)
    if unknown:
        raise HookPointError(
            f"The attention of {type(module).__name__} has parts that its pattern here would lack: "
            f"{', '.join(unknown)}. Look at the outputs of heads, attn_z."
        )
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    query, key, value = (
        _edited(module, part, given) for part, given in zip(HEAD_INPUTS, (query, key, value), strict=True)
    )
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    dtype = torch.promote_types(query.dtype, torch.float32)
    pattern = scores.softmax(-1, dtype=dtype).to(query.dtype)
    pattern = _edited(module, ATTN_PATTERN, pattern)
    pattern = nn.functional.dropout(pattern, dropout, training=module.training)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


def _edited(module: nn.Module, part: str, given: Tensor) -> Tensor:
    """Something inside an attention module, edited where the axes of its heads come second last."""
    edit = _edits.get({}).get((module, part))
    return given if edit is None else edit(given.transpose(1, 2)).transpose(1, 2)


AttentionInterface.register(PATTERNS, attention_with_patterns)
AttentionMaskInterface.register(PATTERNS, eager_mask)
