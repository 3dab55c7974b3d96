"""One name for each place of a decoder, the same in every backend.

    embed                     output of the token embedding                              [batch, pos, d_model]
    layers.{i}.resid_pre      residual stream before block i                             [batch, pos, d_model]
    layers.{i}.attn_z         attention output of all heads, before the projection       [batch, pos, n_heads * d_head]
    layers.{i}.attn_out       what attention adds to the residual stream                 [batch, pos, d_model]
    layers.{i}.resid_mid      residual stream between attention and MLP                  [batch, pos, d_model]
    layers.{i}.mlp_in         what the MLP reads, after its norm                         [batch, pos, d_model]
    layers.{i}.mlp_out        what the MLP adds to the residual stream                   [batch, pos, d_model]
    layers.{i}.resid_post     residual stream after block i                              [batch, pos, d_model]
    final_norm                output of the last norm                                    [batch, pos, d_model]
    logits                    output of the unembedding, before a soft cap or scale      [batch, pos, vocab]

A block whose attention and MLP read the same input has no ``resid_mid``. The names that are usual in the field
(``blocks.{i}.hook_resid_pre``, ``blocks.{i}.attn.hook_z``, ...) are aliases of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from attrs import frozen

EMBED = "embed"
FINAL_NORM = "final_norm"
LOGITS = "logits"
RESID_PRE, RESID_MID, RESID_POST = "resid_pre", "resid_mid", "resid_post"
ATTN_Z, ATTN_OUT = "attn_z", "attn_out"
MLP_IN, MLP_OUT = "mlp_in", "mlp_out"
"""The places; those of a block are made names with ``in_layer``."""


@frozen
class Place:
    """A place of a decoder.

    Attributes:
        name: Its name; in a block, the part after ``layers.{i}.``.
        about: What stands there.
        shape: Its axes.
        aliases: Other names; in a block, the part after ``blocks.{i}.``.
    """

    name: str
    about: str
    aliases: tuple[str, ...]
    shape: str = "[batch, pos, d_model]"


IN_BLOCK = (
    Place(RESID_PRE, "residual stream before the block", ("hook_resid_pre", "hook_in")),
    Place(
        ATTN_Z,
        "attention output of all heads, before the projection",
        ("attn.hook_z", "attn.o.hook_in"),
        "[batch, pos, n_heads * d_head]",
    ),
    Place(ATTN_OUT, "what attention adds to the residual stream", ("hook_attn_out",)),
    Place(RESID_MID, "residual stream between attention and MLP", ("hook_resid_mid",)),
    Place(MLP_IN, "what the MLP reads, after its norm", ("mlp.hook_in",)),
    Place(MLP_OUT, "what the MLP adds to the residual stream", ("hook_mlp_out",)),
    Place(RESID_POST, "residual stream after the block", ("hook_resid_post", "hook_out")),
)
"""The places of a block, in the order in which a forward comes by."""

BEFORE_BLOCKS = (Place(EMBED, "output of the token embedding", ("hook_embed", "embed.hook_out")),)
AFTER_BLOCKS = (
    Place(FINAL_NORM, "output of the last norm", ("ln_final.hook_out",)),
    Place(
        LOGITS,
        "output of the unembedding, before a soft cap or scale",
        ("unembed.hook_out", "hook_unembed"),
        "[batch, pos, vocab]",
    ),
)

_OUTSIDE: Mapping[str, str] = {
    alias: place.name for place in (*BEFORE_BLOCKS, *AFTER_BLOCKS) for alias in place.aliases
}
_INSIDE: Mapping[str, str] = {alias: place.name for place in IN_BLOCK for alias in place.aliases}
_ALIAS_IN_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_IN_BLOCK = re.compile(r"layers\.(\d+)\.(\w+)")


def in_layer(layer: int, place: str) -> str:
    """The name of a place of a block: ``in_layer(3, RESID_PRE)`` is ``layers.3.resid_pre``."""
    return f"layers.{layer}.{place}"


def split_layer(name: str) -> tuple[int, str] | None:
    """Layer and place of a canonical name or an alias; None for places outside of blocks and unknown names."""
    found = _IN_BLOCK.fullmatch(canonical(name))
    return (int(found.group(1)), found.group(2)) if found else None


def canonical(name: str) -> str:
    """The canonical name of a place that is given by an alias; any other name comes back as it is."""
    found = _ALIAS_IN_BLOCK.fullmatch(name)
    if found is None:
        return _OUTSIDE.get(name, name)
    place = _INSIDE.get(found.group(2))
    return name if place is None else in_layer(int(found.group(1)), place)


def aliases(name: str) -> Iterator[str]:
    """The aliases of a canonical name, the most usual first; none for any other name."""
    found = _IN_BLOCK.fullmatch(name)
    for place in IN_BLOCK if found else (*BEFORE_BLOCKS, *AFTER_BLOCKS):
        if found and place.name == found.group(2):
            yield from (f"blocks.{found.group(1)}.{alias}" for alias in place.aliases)
        elif place.name == name:
            yield from place.aliases


def canonical_names(n_layers: int) -> Iterator[tuple[str, Place]]:
    """All canonical names of a decoder of so many blocks, in the order in which a forward comes by."""
    for place in BEFORE_BLOCKS:
        yield place.name, place
    for layer in range(n_layers):
        for place in IN_BLOCK:
            yield in_layer(layer, place.name), place
    for place in AFTER_BLOCKS:
        yield place.name, place
