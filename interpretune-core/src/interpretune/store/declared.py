"""Which fields a store can keep, and whether two runs keep the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import evolve

from interpretune.errors import StoreError
from interpretune.store.fields import Field, Per

RESERVED = {"example", "batch", "latents", "hook", "latent"}
"""Columns that every store has."""


def check_fields(fields: Sequence[Field]) -> dict[str, Field]:
    """Fields by name.

    Raises:
        StoreError: One cannot be stored, or two have one name.
    """
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
