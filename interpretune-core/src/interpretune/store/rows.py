"""The rows of a batch: declared fields as one Arrow record batch, and back; rows of a file are checked before."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from attrs import field, frozen
from numpy.typing import NDArray
from torch import Tensor

from interpretune.errors import StoreError
from interpretune.store.batch_notes import Layout, Notes
from interpretune.store.columns import Column, column_of, number_tensor, size_of
from interpretune.store.fields import Field, Per
from interpretune.store.latents import (
    HOOK,
    LATENT,
    LATENTS,
    check_latents,
    decode_latents,
    encode_latents,
    entries_type,
)
from interpretune.store.values import LatentValues, StoredBatch

EXAMPLE, BATCH = "example", "batch"


@frozen
class Selection:
    """Columns that are read.

    Attributes:
        columns: Top-level columns without the sparse one.
        latents: Per-latent fields; None: the sparse column is not read at all.
    """

    columns: tuple[str, ...]
    latents: tuple[str, ...] | None

    @property
    def paths(self) -> list[str]:
        """The same as paths in a Parquet file."""
        members = () if self.latents is None else (HOOK, LATENT, *self.latents)
        return [*self.columns, *(f"{LATENTS}.list.element.{name}" for name in members)]


@frozen(eq=False)
class Rows:
    """How the fields of a store become columns, once dtypes and sizes are known.

    Attributes:
        columns: By name of the field; tables are not among them.
        sparse: Those of per-latent fields.
        dense: All others.
        schema: Arrow schema of the rows.
    """

    columns: Mapping[str, Column]
    sparse: Sequence[Column] = field(init=False)
    dense: Sequence[Column] = field(init=False)
    schema: pa.Schema = field(init=False)

    @sparse.default
    def _find_sparse(self) -> list[Column]:
        return [column for column in self.columns.values() if column.field.per is Per.latent]

    @dense.default
    def _find_dense(self) -> list[Column]:
        return [column for column in self.columns.values() if column.field.per is not Per.latent]

    @schema.default
    def _make_schema(self) -> pa.Schema:
        fields = [pa.field(name, pa.int64(), nullable=False) for name in (EXAMPLE, BATCH)]
        fields += [column.arrow for column in self.dense]
        if self.sparse:
            fields.append(pa.field(LATENTS, entries_type(self.sparse), nullable=False))
        return pa.schema(fields)

    @classmethod
    def of_values(cls, fields: Mapping[str, Field], values: Mapping[str, Any]) -> Rows:
        """Take dtypes and sizes from the first batch.

        Raises:
            StoreError: A value does not tell them.
        """
        return cls({name: column_of(item, values[name]) for name, item in fields.items() if item.per is not Per.run})

    @classmethod
    def of_arrow(cls, fields: Mapping[str, Field], schema: pa.Schema) -> Rows:
        """Take dtypes and sizes from a file.

        Raises:
            ValueError: The file's columns are not those of the fields.
        """
        stored = {name: item for name, item in fields.items() if item.per is not Per.run}
        found = {item.name: item for item in schema}
        sparse = [item for item in stored.values() if item.per is Per.latent]
        if sparse and LATENTS in found:
            kind = found.pop(LATENTS).type
            if not pa.types.is_list(kind) or not pa.types.is_struct(kind.value_type):
                raise ValueError(f"its column {LATENTS} is {kind}")
            members = {item.name: item for item in kind.value_type}
            if any(members.pop(name, None) is None for name in (HOOK, LATENT)):
                raise ValueError(f"its column {LATENTS} lacks {HOOK} or {LATENT}")
            found |= members
        wanted = {EXAMPLE, BATCH, *stored}
        if found.keys() != wanted:
            raise ValueError(
                f"its columns are {', '.join(sorted(found))}, and {', '.join(sorted(wanted))} are declared"
            )
        if any(found[name].type != pa.int64() for name in (EXAMPLE, BATCH)):
            raise ValueError(f"its columns {EXAMPLE} and {BATCH} are not int64")
        return cls({name: Column.of_arrow(item, found[name]) for name, item in stored.items()})

    def schema_of(self, selection: Selection) -> pa.Schema:
        """Arrow schema of some columns."""
        fields = [item for item in self.schema if item.name in selection.columns]
        if selection.latents is not None:
            kind = entries_type([self.columns[name] for name in selection.latents])
            fields.append(pa.field(LATENTS, kind, nullable=False))
        return pa.schema(fields)

    def select(self, names: Collection[str] | None) -> Selection:
        """The columns that hold some fields.

        Args:
            names: Fields, columns, or both; None: all.

        Raises:
            StoreError: There is no such field.
        """
        chosen = [*self.columns, LATENTS] if names is None else list(names)
        known = {EXAMPLE, BATCH, *self.columns, *([LATENTS] if self.sparse else [])}
        for name in () if names is None else chosen:
            if name not in known:
                near = get_close_matches(str(name), sorted(known), 1)
                hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(sorted(known))}."
                raise StoreError(f"The store has no column {name!r}. {hint}")
        dense = tuple(column.field.name for column in self.dense if column.field.name in chosen)
        sparse = tuple(c.field.name for c in self.sparse if c.field.name in chosen or LATENTS in chosen)
        return Selection((EXAMPLE, BATCH, *dense), sparse if sparse else None)

    def encode(self, index: int, examples: Any, values: Mapping[str, Any]) -> tuple[pa.RecordBatch, Notes]:
        """Check the values of a batch and make rows of them.

        Args:
            index: Index of the batch.
            examples: Its examples, ``[n]``.
            values: By field, as ``Field`` describes them.

        Raises:
            StoreError: A value is not what was declared.
        """
        numbers = _examples(examples, index)
        n = len(numbers)
        arrays = [pa.array(numbers), pa.array(np.full(n, index, dtype=np.int64))]
        plain = []
        for column in self.dense:
            name = column.field.name
            where = f"{name} of batch {index}"
            value = values[name]
            if column.field.per is Per.example:
                arrays.append(column.encode(value, n, where))
                continue
            if type(value) in (bool, int, float) and not column.sizes and not column.field.ragged:
                plain.append(name)
                value = number_tensor(value, column, where)
            if column.field.ragged or column.dtype == "string":
                array = column.encode([value], 1, where)
            else:
                array = column.to_arrow(column.storable(value, (), where)[None])
            arrays.append(pa.concat_arrays([array] * n))
        widths: dict[str, int] = {}
        hooks = []
        for column in self.sparse:
            name = column.field.name
            check_latents(values[name], column, n, f"{name} of batch {index}")
            hooks.append((name, tuple(values[name])))
            for hook, found in values[name].items():
                if widths.setdefault(hook, found.d_sae) != found.d_sae:
                    raise StoreError(f"Fields of batch {index} give {hook} {widths[hook]} and {found.d_sae} latents.")
        if self.sparse:
            arrays.append(encode_latents(self.sparse, values, n, f"Batch {index}"))
        rows = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        return rows, Notes.of_batch(index, n, Layout(tuple(hooks), tuple(plain)), widths)

    def decode(
        self, rows: pa.RecordBatch, selection: Selection, index: int, layout: Layout, widths: Mapping[str, int]
    ) -> StoredBatch:
        """The values of one batch, as they were given."""
        values: dict[str, Any] = {}
        with torch.inference_mode(mode=False):  # what is read can be used without restrictions, wherever it is read
            sparse: Mapping[str, Mapping[str, LatentValues]] = {}
            if selection.latents is not None:
                columns = [self.columns[name] for name in selection.latents]
                sparse = decode_latents(columns, rows.column(LATENTS), dict(layout.hooks), widths)
            for name, column in self.columns.items():
                if name in sparse:
                    values[name] = sparse[name]
                elif name in selection.columns:
                    per_batch = column.field.per is Per.batch
                    found = column.decode(rows.column(name)[:1] if per_batch else rows.column(name))
                    values[name] = found[0] if per_batch else found
                    if name in layout.numbers:
                        values[name] = values[name].item()
            examples = torch.from_numpy(rows.column(EXAMPLE).to_numpy().copy())
        return StoredBatch(index, examples, values)


def _examples(examples: Any, index: int) -> np.ndarray[Any, Any]:
    if isinstance(examples, Tensor):
        examples = examples.detach().cpu().numpy()
    numbers = np.asarray(examples)
    if numbers.ndim != 1 or not len(numbers) or numbers.dtype.kind not in "iu" or numbers.min() < 0:
        raise StoreError(
            f"Batch {index} needs the positions of its examples, one or more integers from 0; found {examples!r}."
        )
    return numbers.astype(np.int64)


def check_rows(
    rows: pa.RecordBatch, index: NDArray[np.int64], counts: NDArray[np.int64], widths: Mapping[str, int]
) -> None:
    """Hold rows, or some of their columns, to the notes of their file.

    Args:
        rows: The rows.
        index: Index of each of their batches, ``[batches]``.
        counts: Rows of each.
        widths: Width of the dictionary of each activation name.

    Raises:
        ValueError: Batches are not those of the notes, a position is negative, a value is missing, or an entry names a
            latent that its dictionary does not have.
    """
    if rows.num_rows != int(counts.sum()):
        raise ValueError(f"it has {rows.num_rows} rows where its notes say {int(counts.sum())}")
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        if column.null_count or (name != LATENTS and _lacks_elements(column)):
            raise ValueError(f"{name} lacks values")
    if BATCH in rows.schema.names and not np.array_equal(rows.column(BATCH).to_numpy(), np.repeat(index, counts)):
        raise ValueError("its rows are of other batches than its notes say")
    examples = rows.column(EXAMPLE).to_numpy()
    if len(examples) and examples.min() < 0:
        raise ValueError(f"it has the example {examples.min()}, and positions are 0 or more")
    if LATENTS in rows.schema.names:
        _check_entries(rows.column(LATENTS).flatten(), widths)


def _lacks_elements(column: pa.Array) -> bool:
    while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
        if column.null_count:
            return True
    return False


def _check_entries(entries: pa.StructArray, widths: Mapping[str, int]) -> None:
    for name in (HOOK, LATENT):
        if entries.null_count or entries.field(name).null_count:
            raise ValueError(f"entries of {LATENTS} lack their {name}")
    hooks = entries.field(HOOK)
    known = [widths.get(hook, -1) for hook in hooks.dictionary.to_pylist()]
    if not len(hooks):
        return
    codes = hooks.indices.to_numpy()
    if codes.min() < 0 or codes.max() >= len(known):
        raise ValueError(f"an entry of {LATENTS} has no activation name")
    for item in entries.type:
        if pa.types.is_list(item.type):
            lengths = pc.list_value_length(entries.field(item.name)).drop_null().to_numpy()
            if (lengths != size_of(item)).any():
                raise ValueError(f"{item.name} has more or fewer values than it tells")
    width = np.array(known, dtype=np.int64)[codes]
    latents = entries.field(LATENT).to_numpy()
    wrong = np.flatnonzero((latents < 0) | (latents >= width))
    if len(wrong):
        at = wrong[0]
        hook = hooks.dictionary[int(codes[at])].as_py()
        have = f"has {width[at]} latents" if width[at] >= 0 else "is not in its notes"
        raise ValueError(f"an entry names latent {latents[at]} of {hook}, which {have}")
