"""Fields: what operations read and write and what stores keep, declared by name, dtype, shape and unit of count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

import torch
from attrs import evolve, field, frozen, validators

from interpretune.errors import ConfigurationError, StoreError

TORCH_DTYPES = {
    name: getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}
DTYPES = (*TORCH_DTYPES, "float", "string", "object")


class Per(StrEnum):
    """What a field has one value for.

    ``example``: each example of a batch; ``latent``: each example and alive latent of each latent model; ``batch``:
    each batch; ``run``: the whole run.
    """

    example = "example"
    latent = "latent"
    batch = "batch"
    run = "run"


@frozen
class Field:
    """A named result.

    Values in memory, for a batch of ``n`` examples:

    * per example: a tensor ``[n, *shape]``; where ``ragged``, a list of ``n`` tensors; for strings a list of ``n``
      strings, or of ``n`` lists of strings where ``ragged``.
    * per latent: a mapping from activation name to ``LatentValues`` of values ``[n, n_alive, *shape]``.
    * per batch: a tensor without axes or a number; anything where the dtype is ``object``.
    * per run: a ``pyarrow.Table``.

    Attributes:
        name: An identifier.
        dtype: One of ``DTYPES``. ``float`` is the dtype that the model computes in; ``object`` lives in memory only and
            is never stored.
        per: What it has one value for.
        shape: The further axes of one value in words, such as ``("vocab",)``.
        ragged: One value is a list whose length differs between examples.
        about: What it says, with its unit.
    """

    name: str = field()
    dtype: str = field(default="float", validator=validators.in_(DTYPES))
    per: Per = field(default=Per.example, converter=Per)
    shape: tuple[str, ...] = field(default=(), converter=tuple[Any, ...])
    ragged: bool = False
    about: str = ""

    @name.validator
    def _check_name(self, _: object, value: str) -> None:
        if not value.isidentifier():
            raise ConfigurationError(f"A field's name must be an identifier; {value!r} is none.")

    @property
    def stored(self) -> bool:
        """Whether a store can keep it."""
        return self.dtype != "object"

    def __str__(self) -> str:
        axes = "".join(f" x {axis}" for axis in self.shape)
        return f"{self.name}: {self.dtype}{'[]' if self.ragged else ''} per {self.per}{axes}"


RESERVED = {"example", "batch", "latents", "hook", "latent"}
"""Columns that every store has."""


def check_fields(fields: Sequence[Field]) -> dict[str, Field]:
    """Fields by name; each can be stored, and none is there twice."""
    by_name: dict[str, Field] = {}
    for item in fields:
        if item.name in by_name or item.name in RESERVED:
            reason = "it is declared twice" if item.name in by_name else "the store uses that name itself"
        elif not item.stored:
            reason = "objects live in memory only"
        elif item.per is Per.latent and (item.ragged or item.dtype == "string"):
            reason = "values of latents are tensors of fixed sizes"
        elif item.dtype == "string" and item.shape:
            reason = "text has no axes; use ragged for lists of texts"
        else:
            by_name[item.name] = item
            continue
        raise StoreError(f"The field {item} cannot be stored: {reason}.")
    return by_name


def describe(items: Iterable[Field]) -> str:
    """Fields in words, one after the other."""
    return "; ".join(map(str, items)) or "none"


def same_fields(one: Iterable[Field], other: Iterable[Field]) -> bool:
    """Whether two runs store the same, however they word it."""
    ours, theirs = ([evolve(item, about="") for item in items] for items in (one, other))
    return ours == theirs
