"""Values of one field as an Arrow array, and back: whole arrays at a time, exact to the last bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from attrs import frozen
from torch import Tensor

from interpretune.errors import StoreError
from interpretune.store.fields import TORCH_DTYPES, Field, Per
from interpretune.store.values import LatentValues

ARROW_TYPES = {
    "float64": pa.float64(),
    "float32": pa.float32(),
    "float16": pa.float32(),
    "bfloat16": pa.float32(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "int16": pa.int16(),
    "int8": pa.int8(),
    "uint8": pa.uint8(),
    "bool": pa.bool_(),
    "string": pa.string(),
}
"""How dtypes are stored. Half precision is widened: few readers know it, and nothing is lost."""
DTYPE_KEY = b"torch_dtype"
SIZE_KEY = b"size"
"""In the metadata of a field: the size of its first axis, where its type does not tell it."""
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
NUMBERS: dict[type, tuple[str, ...]] = {
    bool: ("bool",),
    int: ("int64", "int32", "int16", "int8", "uint8"),
    float: ("float64",),
}
"""Dtypes that keep a Python number exactly."""


@frozen
class Column:
    """A field whose dtype and sizes are known.

    Attributes:
        field: What it holds.
        dtype: Its dtype; where the field says ``float``, that of the first batch.
        sizes: Sizes of the axes in ``field.shape``.
    """

    field: Field
    dtype: str
    sizes: tuple[int, ...] = ()

    @property
    def element_type(self) -> pa.DataType:
        """Arrow type of one value, or of one item where the field is ragged."""
        kind = ARROW_TYPES[self.dtype]
        for place in reversed(range(len(self.sizes))):
            listed = place == 0 and self.field.per is Per.latent  # may be null: no Arrow before 26 reads such a
            kind = pa.list_(pa.field("element", kind), -1 if listed else self.sizes[place])  # list of fixed size
        return kind

    @property
    def element_dtype(self) -> str:
        """NumPy dtype of what is stored."""
        return "float32" if self.dtype in ("float16", "bfloat16") else self.dtype

    @property
    def arrow(self) -> pa.Field:
        """The Arrow field. A latent that one per-latent field has and another has not is null in the latter."""
        kind = self.element_type
        if self.field.ragged:
            kind = pa.list_(pa.field("element", kind))
        metadata = {DTYPE_KEY: self.dtype.encode(), b"about": self.field.about.encode()}
        if self.sizes and self.field.per is Per.latent:
            metadata[SIZE_KEY] = str(self.sizes[0]).encode()
        return pa.field(self.field.name, kind, nullable=self.field.per is Per.latent, metadata=metadata)

    @classmethod
    def of_arrow(cls, item: Field, found: pa.Field) -> Column:
        """What an Arrow field of a file holds; ``ValueError`` if that is not what the field declares."""
        dtype = (found.metadata or {}).get(DTYPE_KEY, item.dtype.encode()).decode()
        kind, sizes = found.type, []
        if item.ragged:
            if not pa.types.is_list(kind):
                raise ValueError(f"{item} is stored as {found.type}")
            kind = kind.value_type
        if item.per is Per.latent and item.shape:
            if not pa.types.is_list(kind):
                raise ValueError(f"{item} is stored as {found.type}")
            sizes.append(size_of(found))
            kind = kind.value_type
        while pa.types.is_fixed_size_list(kind):
            sizes.append(kind.list_size)
            kind = kind.value_type
        fits = dtype == item.dtype or (item.dtype == "float" and "float" in dtype)
        if not fits or ARROW_TYPES.get(dtype) != kind or len(sizes) != len(item.shape):
            raise ValueError(f"{item} is stored as {found.type}")
        return cls(item, dtype, tuple(sizes))

    def expected(self, *lengths: int | str) -> str:
        """What a value must be, in words."""
        if self.dtype == "string":
            return "text"
        return f"a torch.{self.dtype} tensor [{', '.join(map(str, (*lengths, *self.sizes)))}]"

    def storable(self, value: Any, lengths: Sequence[int], where: str) -> np.ndarray[Any, Any]:
        """A tensor as a NumPy array of its own, in the dtype that is stored.

        Args:
            value: Tensor ``[*lengths, *sizes]``.
            lengths: Its leading axes; -1 is any length.
            where: Which value it is, for errors.
        """
        wanted = (*lengths, *self.sizes)
        if not isinstance(value, Tensor):
            raise StoreError(f"{where} must be {self._named(lengths)}, and is a {type(value).__name__}.")
        fits = value.ndim == len(wanted) and all(w in (-1, s) for w, s in zip(wanted, value.shape, strict=True))
        if value.dtype is not TORCH_DTYPES[self.dtype] or not fits:
            raise StoreError(
                f"{where} must be {self._named(lengths)}, and is a {value.dtype} tensor {list(value.shape)}. A store "
                "keeps what was declared; change the declaration or the value."
            )
        value = value.detach().cpu()
        if self.dtype in ("float16", "bfloat16"):
            value = value.float()
        return np.array(value.numpy(), copy=True)

    def _named(self, lengths: Sequence[int]) -> str:
        return self.expected(*("any" if length < 0 else length for length in lengths))

    def to_arrow(self, values: np.ndarray[Any, Any], valid: np.ndarray[Any, Any] | None = None) -> pa.Array:
        """An array ``[n, *sizes]`` as ``n`` Arrow values, those that are not valid as null."""
        mask = None if valid is None or valid.all() else ~valid
        if not self.sizes:
            return pa.array(values, type=self.element_type, mask=mask)
        has = np.ones(len(values), dtype=bool) if mask is None else ~mask
        kind, kinds = self.element_type, []
        while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            kinds.append(kind)
            kind = kind.value_type
        array = pa.array(values[has].reshape(-1), type=kind)
        for kind in reversed(kinds):
            if pa.types.is_fixed_size_list(kind):
                array = pa.FixedSizeListArray.from_arrays(array, type=kind)
            else:
                options = {} if mask is None else {"mask": pa.array(mask)}
                array = pa.ListArray.from_arrays(_offsets((has * self.sizes[0]).tolist()), array, type=kind, **options)
        return array

    def to_tensor(self, array: pa.Array) -> Tensor:
        """Arrow values, without those that are null, as a tensor ``[n, *sizes]`` of its own."""
        n = len(array) - array.null_count
        if array.null_count and not self.sizes:
            array = array.drop_null()
        for _ in self.sizes:
            array = array.flatten()  # leaves out what is null
        values = np.array(array.to_numpy(zero_copy_only=False), copy=True)
        tensor = torch.from_numpy(values).reshape(n, *self.sizes)
        return tensor.to(TORCH_DTYPES[self.dtype])

    def encode(self, values: Sequence[Any], n: int, where: str) -> pa.Array:
        """Values of ``n`` examples, as ``Field`` describes them."""
        if self.dtype == "string":
            return self._encode_text(values, n, where)
        if not self.field.ragged:
            return self.to_arrow(self.storable(values, (n,), where))
        if not isinstance(values, (list, tuple)) or len(values) != n:
            raise StoreError(f"{where} must be a list of {n} tensors, and is {described(values)}.")
        arrays = [self.storable(item, (-1,), f"{where}, entry {i}") for i, item in enumerate(values)]
        flat = self.to_arrow(np.concatenate(arrays))
        return pa.ListArray.from_arrays(_offsets([len(item) for item in arrays]), flat, type=self.arrow.type)

    def _encode_text(self, values: Sequence[Any], n: int, where: str) -> pa.Array:
        ragged = self.field.ragged
        if not isinstance(values, (list, tuple)) or len(values) != n:
            wanted = "lists of texts" if ragged else "texts"
            raise StoreError(f"{where} must be a list of {n} {wanted}, and is {described(values)}.")
        for i, item in enumerate(values):
            texts = item if ragged and isinstance(item, (list, tuple)) else (item,)
            if (ragged and texts is not item) or not all(isinstance(text, str) for text in texts):
                wanted = "a list of texts" if ragged else "text"
                raise StoreError(f"{where}, entry {i}, must be {wanted}, and is {described(item)}.")
        try:
            return pa.array([list(item) for item in values] if ragged else list(values), type=self.arrow.type)
        except (UnicodeEncodeError, pa.ArrowException) as error:
            raise StoreError(f"{where} holds text that is not valid Unicode ({error}).") from error

    def decode(self, array: pa.Array) -> Any:
        """What was given to ``encode``."""
        if self.dtype == "string":
            return array.to_pylist()
        if not self.field.ragged:
            return self.to_tensor(array)
        lengths = np.diff(array.offsets.to_numpy())
        return list(torch.split(self.to_tensor(array.flatten()), lengths.tolist()))


def size_of(found: pa.Field) -> int:
    """Size of the first axis of a per-latent field; ``ValueError`` if its metadata does not tell it."""
    told = (found.metadata or {}).get(SIZE_KEY, b"")
    if not told.isdigit() or not int(told):
        raise ValueError(f"{found.name} does not tell its size")
    return int(told)


def floats(column: pa.Array) -> np.ndarray[Any, Any]:
    """A column of numbers or truth values in float64, NaN where it has none."""
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def described(value: Any) -> str:
    """What something is, in a few words."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor {list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def number_tensor(value: Any, column: Column, where: str) -> Tensor:
    """A Python number as a tensor without axes."""
    told = f"{where} must be {column.expected()}, and is the number {value!r}."
    if column.dtype not in NUMBERS[type(value)]:
        raise StoreError(told)
    try:
        return torch.tensor(np.array(value, dtype=column.dtype))
    except OverflowError as error:
        raise StoreError(told) from error


def _offsets(lengths: Sequence[int]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def column_of(item: Field, value: Any) -> Column:
    """Dtype and sizes of a field from its first value."""
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
