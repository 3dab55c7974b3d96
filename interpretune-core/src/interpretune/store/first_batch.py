"""Dtypes and sizes that a declaration leaves open, taken from the first batch of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from interpretune.errors import StoreError
from interpretune.store.columns import DTYPE_NAMES, Column, described
from interpretune.store.fields import Field, Per
from interpretune.store.values import LatentValues


def column_of(item: Field, value: Any) -> Column:
    """Dtype and sizes of a field from its first value.

    Raises:
        StoreError: The value does not tell them, or is not what is declared.
    """
    if item.dtype == "string" or (item.dtype != "float" and not item.shape):
        return Column(item, item.dtype)
    if isinstance(value, float) and item.per is Per.batch and item.dtype == "float" and not item.shape:
        return Column(item, "float64")
    found, axes = value, int(item.per is Per.example)
    if item.per is Per.latent:
        found, axes = next((entry.values for entry in _latent_values(value)), None), 2
    elif item.ragged:
        axes = 1
        if item.per is Per.example:
            found = value[0] if isinstance(value, (list, tuple)) and value else None
    if not isinstance(found, Tensor) or found.ndim != axes + len(item.shape):
        told = "nothing that tells its dtype and sizes" if found is None else described(found)
        raise StoreError(f"{item.name} of the first batch is {told}; declared is {item}.")
    dtype = item.dtype
    if dtype == "float":
        dtype = DTYPE_NAMES.get(found.dtype, "")
        if "float" not in dtype:
            raise StoreError(f"{item.name} of the first batch is {described(found)}; declared is {item}.")
    sizes = tuple(found.shape[axes:])
    if 0 in sizes:
        raise StoreError(f"{item.name} of the first batch is {described(found)}; axes of size 0 cannot be stored.")
    return Column(item, dtype, sizes)


def _latent_values(value: Any) -> list[LatentValues]:
    return [entry for entry in value.values() if isinstance(entry, LatentValues)] if isinstance(value, Mapping) else []
