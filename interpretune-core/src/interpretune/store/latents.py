"""Per-latent values of a batch as one sparse column, and back.

Each example has a list with an entry for each activation name and latent where some field is not zero (NaN is not), in
the order of names and ids. A latent that is alive in a batch and zero in all its examples has an entry of zeros in the
first, so that the alive latents of every field are known from the entries. A field that does not know a latent is null
there. What has no entry comes back as 0; a negative zero loses its sign there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from interpretune.errors import StoreError
from interpretune.store.columns import Column, described
from interpretune.store.values import LatentValues

LATENTS, HOOK, LATENT = "latents", "hook", "latent"
HOOK_TYPE = pa.dictionary(pa.int16(), pa.string())
MAX_HOOKS = np.iinfo(np.int16).max
Array = NDArray[Any]


def entries_type(columns: Sequence[Column]) -> pa.DataType:
    """Arrow type of the column."""
    members = [pa.field(HOOK, HOOK_TYPE, nullable=False), pa.field(LATENT, pa.int32(), nullable=False)]
    members += [column.arrow for column in columns]
    return pa.list_(pa.field("element", pa.struct(members), nullable=False))


def hook_array(codes: Array, hooks: Sequence[str]) -> pa.Array:
    """Activation names as codes."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int16)), pa.array(hooks, type=pa.string()))


def hook_codes(array: pa.Array, hooks: Sequence[str]) -> Array:
    """Position of each activation name in ``hooks``."""
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    places = {hook: place for place, hook in enumerate(hooks)}
    own = np.array([places.get(hook, -1) for hook in array.dictionary.to_pylist()], dtype=np.int64)
    return own[array.indices.to_numpy()] if len(own) else np.zeros(len(array), dtype=np.int64)


def check_latents(values: Any, column: Column, n: int, where: str) -> None:
    """Refuse what is no mapping from activation names to latent values of ``n`` examples."""
    if not isinstance(values, Mapping):
        raise StoreError(f"{where} must be a mapping from activation names to LatentValues; it is {described(values)}.")
    for hook, found in values.items():
        at = f"{where} at {hook}"
        if not isinstance(hook, str) or not isinstance(found, LatentValues):
            raise StoreError(f"{at} must be LatentValues under an activation name, and is {described(found)}.")
        ids = found.latents
        if not isinstance(ids, Tensor) or ids.dtype is not torch.int64 or ids.ndim != 1:
            raise StoreError(f"{at}: `latents` must be a torch.int64 tensor [n_alive], and is {described(ids)}.")
        if not 0 < found.d_sae <= 2**31:
            raise StoreError(f"{at}: a dictionary of {found.d_sae} latents cannot be stored; 1 to 2**31 can.")
        if len(ids) and (ids[0] < 0 or ids[-1] >= found.d_sae or (ids[1:] <= ids[:-1]).any()):
            raise StoreError(f"{at}: `latents` must ascend from 0 to below {found.d_sae}, each once.")


def encode_latents(
    columns: Sequence[Column], values: Mapping[str, Mapping[str, LatentValues]], n: int, where: str
) -> pa.Array:
    """Checked values of all per-latent fields of a batch of ``n`` examples."""
    hooks = list(dict.fromkeys(hook for column in columns for hook in values[column.field.name]))
    if len(hooks) > MAX_HOOKS:
        raise StoreError(f"{where} has {len(hooks)} activation names; {MAX_HOOKS} can be stored.")
    rows: list[Array] = [np.zeros(0, dtype=np.int64)]
    codes: list[Array] = [np.zeros(0, dtype=np.int64)]
    ids: list[Array] = [np.zeros(0, dtype=np.int32)]
    data: list[list[Array]] = [[] for _ in columns]
    valid: list[list[Array]] = [[] for _ in columns]
    for code, hook in enumerate(hooks):
        given = [values[column.field.name].get(hook) for column in columns]
        own = [None if item is None else item.latents.cpu().numpy() for item in given]
        known = [item for item in own if item is not None]
        union = known[0] if all(np.array_equal(known[0], item) for item in known) else np.unique(np.concatenate(known))
        dense: list[Array | None] = []
        present = np.zeros((n, len(union)), dtype=bool)
        for column, item, latents in zip(columns, given, own, strict=True):
            if item is None or latents is None:
                dense.append(None)
                continue
            array = column.storable(item.values, (n, len(latents)), f"{where}, {column.field.name} at {hook}")
            dense.append(array)
            some = array != 0
            if array.ndim > 2:
                some = some.any(axis=tuple(range(2, array.ndim)))
            if len(latents) == len(union):
                present |= some
            else:
                present[:, np.searchsorted(union, latents)] |= some
        present[0, ~present.any(axis=0)] = True
        row, place = present.nonzero()
        rows.append(row)
        codes.append(np.full(len(row), code))
        ids.append(union[place].astype(np.int32))
        for i, (column, dense_values, latents) in enumerate(zip(columns, dense, own, strict=True)):
            if dense_values is None or latents is None:
                data[i].append(np.zeros((len(row), *column.sizes), dtype=column.element_dtype))
                valid[i].append(np.zeros(len(row), dtype=bool))
                continue
            picked, has = _pick(dense_values, latents, union, row, place)
            data[i].append(picked)
            valid[i].append(has)
    row = np.concatenate(rows)
    order = np.argsort(row, kind="stable")
    arrays = [hook_array(np.concatenate(codes)[order], hooks), pa.array(np.concatenate(ids)[order])]
    for i, column in enumerate(columns):
        none = np.zeros((0, *column.sizes), dtype=column.element_dtype)
        every = np.concatenate([none, *data[i]])[order]
        arrays.append(column.to_arrow(every, np.concatenate([np.zeros(0, dtype=bool), *valid[i]])[order]))
    kind = entries_type(columns)
    entries = pa.StructArray.from_arrays(arrays, fields=list(kind.value_type))
    offsets = np.searchsorted(row[order], np.arange(n + 1)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), entries, type=kind)


def _pick(array: Array, latents: Array, union: Array, row: Array, place: Array) -> tuple[Array, Array]:
    """Values at the entries, and where the field knows the latent."""
    if len(latents) == len(union):
        return array[row, place], np.ones(len(row), dtype=bool)
    own = np.full(len(union), -1)
    own[np.searchsorted(union, latents)] = np.arange(len(latents))
    has = own[place] >= 0
    picked = np.zeros((len(row), *array.shape[2:]), dtype=array.dtype)
    picked[has] = array[row[has], own[place[has]]]
    return picked, has


def decode_latents(
    columns: Sequence[Column], array: pa.Array, hooks: Mapping[str, Sequence[str]], widths: Mapping[str, int]
) -> dict[str, dict[str, LatentValues]]:
    """What was given to ``encode_latents``.

    Args:
        columns: The fields that are wanted; the array has them all.
        array: The sparse column of one batch.
        hooks: Activation names of each field.
        widths: Width of each dictionary.
    """
    n = len(array)
    rows = np.repeat(np.arange(n), np.diff(array.offsets.to_numpy()))
    entries = array.flatten()
    names = list(dict.fromkeys(hook for column in columns for hook in hooks[column.field.name]))
    codes = hook_codes(entries.field(HOOK), names)
    ids = entries.field(LATENT).to_numpy().astype(np.int64)
    at_hook = [np.flatnonzero(codes == code) for code in range(len(names))]
    alive: dict[str, tuple[Array, Array]] = {}
    found: dict[str, dict[str, LatentValues]] = {}
    for column in columns:
        member = entries.field(column.field.name)
        has = member.is_valid().to_numpy(zero_copy_only=False) if member.null_count else None
        flat = column.to_tensor(member)  # indexed below, as Arrow's own `take` gets slices of lists of lists wrong
        counted = None if has is None else np.cumsum(has) - 1
        found[column.field.name] = {}
        for hook in hooks[column.field.name]:
            at = at_hook[names.index(hook)]
            if has is not None:
                at = at[has[at]]
            if has is not None or hook not in alive:
                latents, place = np.unique(ids[at], return_inverse=True)
            else:
                latents, place = alive[hook]
            if has is None:
                alive[hook] = latents, place
            dense = flat.new_zeros(n, len(latents), *column.sizes)
            found_at = torch.from_numpy(at if counted is None else counted[at])
            dense[torch.from_numpy(rows[at]), torch.from_numpy(place)] = flat[found_at]
            found[column.field.name][hook] = LatentValues(torch.from_numpy(latents.copy()), dense, widths[hook])
    return found
