"""One name for each hook point of a decoder, the same in every backend.

    embed                     output of the token embedding                              [batch, pos, d_model]
    layers.{i}.resid_pre      residual stream before block i                             [batch, pos, d_model]
    layers.{i}.attn_z         attention output of all heads, before the projection       [batch, pos, n_heads * d_head]
    layers.{i}.attn_out       what attention adds to the residual stream                 [batch, pos, d_model]
    layers.{i}.resid_mid      residual stream between attention and MLP                  [batch, pos, d_model]
    layers.{i}.mlp_in         what the MLP reads, after its norm                         [batch, pos, d_model]
    layers.{i}.mlp_act        activations of the MLP, before its last projection         [batch, pos, d_mlp]
    layers.{i}.mlp_out        what the MLP adds to the residual stream                   [batch, pos, d_model]
    layers.{i}.resid_post     residual stream after block i                              [batch, pos, d_model]
    final_norm                output of the last norm                                    [batch, pos, d_model]
    logits                    output of the unembedding, before a soft cap or scale      [batch, pos, vocab]

    layers.{i}.attn_q         queries of the heads, after rotation                       [batch, pos, n_heads, d_head]
    layers.{i}.attn_k         keys as each head gets them, after rotation                [batch, pos, n_heads, d_head]
    layers.{i}.attn_v         values as each head gets them                              [batch, pos, n_heads, d_head]
    layers.{i}.attn_pattern   shares by which heads mix values                           [batch, query, n_heads, key]

The last four are inside attention: they stand apart from the others, and not every backend reaches them. Heads that
share keys and values have each their own there, which can be edited for one head alone.

A block whose attention and MLP read the same input has no ``resid_mid``, and an MLP of experts no ``mlp_act``. In a
gated MLP, ``mlp_act`` is what the gate has multiplied. Names that are common in the field
(``blocks.{i}.hook_resid_pre``, ``blocks.{i}.attn.hook_z``, ...) are aliases of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from attrs import frozen

EMBED = "embed"
"""Output of the token embedding."""
RESID_PRE = "resid_pre"
"""Residual stream before a block; ``in_layer`` makes the name of a hook point from this part and a layer."""
ATTN_PATTERN = "attn_pattern"
"""Shares by which the heads of a block mix values, after the softmax, ``[batch, query, n_heads, key]``."""
ATTN_Q = "attn_q"
"""Queries of the heads of a block, as scores are made of them, ``[batch, pos, n_heads, d_head]``."""
ATTN_K = "attn_k"
"""Keys of a block, as scores are made of them; those that heads share are repeated for each head."""
ATTN_V = "attn_v"
"""Values of a block, repeated for each head that shares them."""
HEAD_INPUTS = (ATTN_Q, ATTN_K, ATTN_V)
"""What each head attends with."""
IN_ATTENTION = (*HEAD_INPUTS, ATTN_PATTERN)
"""Parts that are inside attention, where not every backend reaches."""
ATTN_Z = "attn_z"
"""Attention output of all heads of a block, before the projection."""
ATTN_OUT = "attn_out"
"""What attention adds to the residual stream of a block."""
RESID_MID = "resid_mid"
"""Residual stream of a block between attention and MLP."""
MLP_IN = "mlp_in"
"""What the MLP of a block reads, after its norm."""
MLP_ACT = "mlp_act"
"""Activations of the MLP of a block, after the non-linearity and the gate, before the last projection."""
MLP_OUT = "mlp_out"
"""What the MLP adds to the residual stream of a block."""
RESID_POST = "resid_post"
"""Residual stream after a block."""
FINAL_NORM = "final_norm"
"""Output of the last norm."""
LOGITS = "logits"
"""Output of the unembedding, before a soft cap or scale."""


@frozen
class HookPoint:
    """A hook point of a decoder.

    Attributes:
        name: Its name; in a block, the part after ``layers.{i}.``.
        about: Which activation it is.
        shape: Its axes.
        aliases: Other names; in a block, the part after ``blocks.{i}.``.
    """

    name: str
    about: str
    aliases: tuple[str, ...]
    shape: str = "[batch, pos, d_model]"


IN_BLOCK = (
    HookPoint(RESID_PRE, "residual stream before the block", ("hook_resid_pre", "hook_in")),
    HookPoint(
        ATTN_Z,
        "attention output of all heads, before the projection",
        ("attn.hook_z", "attn.o.hook_in"),
        "[batch, pos, n_heads * d_head]",
    ),
    HookPoint(ATTN_OUT, "what attention adds to the residual stream", ("hook_attn_out",)),
    HookPoint(RESID_MID, "residual stream between attention and MLP", ("hook_resid_mid",)),
    HookPoint(MLP_IN, "what the MLP reads, after its norm", ("mlp.hook_in",)),
    HookPoint(
        MLP_ACT,
        "activations of the MLP, before its last projection",
        ("mlp.hook_post", "mlp.out.hook_in"),
        "[batch, pos, d_mlp]",
    ),
    HookPoint(MLP_OUT, "what the MLP adds to the residual stream", ("hook_mlp_out",)),
    HookPoint(RESID_POST, "residual stream after the block", ("hook_resid_post", "hook_out")),
)
"""The hook points of a block, in the order in which a forward reaches them."""

BEFORE_BLOCKS = (HookPoint(EMBED, "output of the token embedding", ("hook_embed", "embed.hook_out")),)
AFTER_BLOCKS = (
    HookPoint(FINAL_NORM, "output of the last norm", ("ln_final.hook_out",)),
    HookPoint(
        LOGITS,
        "output of the unembedding, before a soft cap or scale",
        ("unembed.hook_out", "hook_unembed"),
        "[batch, pos, vocab]",
    ),
)

_OUTSIDE: Mapping[str, str] = {
    alias: point.name for point in (*BEFORE_BLOCKS, *AFTER_BLOCKS) for alias in point.aliases
}
_INSIDE: Mapping[str, str] = {alias: point.name for point in IN_BLOCK for alias in point.aliases}
_ALIAS_IN_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_IN_BLOCK = re.compile(r"layers\.(\d+)\.(\w+)")


def in_layer(layer: int, part: str) -> str:
    """The name of a hook point of a block: ``in_layer(3, RESID_PRE)`` is ``layers.3.resid_pre``."""
    return f"layers.{layer}.{part}"


def split_layer(name: str) -> tuple[int, str] | None:
    """Layer and part of a canonical name or an alias; None for hook points outside blocks and unknown names."""
    found = _IN_BLOCK.fullmatch(canonical(name))
    return (int(found.group(1)), found.group(2)) if found else None


def canonical(name: str) -> str:
    """The canonical name of a hook point given by an alias; any other name is returned unchanged."""
    found = _ALIAS_IN_BLOCK.fullmatch(name)
    if found is None:
        return _OUTSIDE.get(name, name)
    part = _INSIDE.get(found.group(2))
    return name if part is None else in_layer(int(found.group(1)), part)


def aliases(name: str) -> Iterator[str]:
    """The aliases of a canonical name, the most common first; none for any other name."""
    found = _IN_BLOCK.fullmatch(name)
    for point in IN_BLOCK if found else (*BEFORE_BLOCKS, *AFTER_BLOCKS):
        if found and point.name == found.group(2):
            yield from (f"blocks.{found.group(1)}.{alias}" for alias in point.aliases)
        elif point.name == name:
            yield from point.aliases


def canonical_names(n_layers: int) -> Iterator[tuple[str, HookPoint]]:
    """All canonical names of a decoder with this many blocks, in the order in which a forward reaches them."""
    for point in BEFORE_BLOCKS:
        yield point.name, point
    for layer in range(n_layers):
        for point in IN_BLOCK:
            yield in_layer(layer, point.name), point
    for point in AFTER_BLOCKS:
        yield point.name, point
