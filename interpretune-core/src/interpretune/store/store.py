"""Results, read: batch by batch as they were given, or as Arrow rows, from a folder or from memory."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
import pyarrow as pa

from interpretune.errors import StoreError
from interpretune.store.contents import Contents
from interpretune.store.fields import Field
from interpretune.store.folder import check_name
from interpretune.store.latents import HOOK, LATENT, LATENTS
from interpretune.store.manifest import Manifest
from interpretune.store.rows import EXAMPLE, Rows, Selection
from interpretune.store.sealing import check_files
from interpretune.store.shards import MemoryPiece, ShardPiece
from interpretune.store.tables import put_table, read_tables, unfolded_tables
from interpretune.store.values import StoredBatch
from interpretune.system.html_table import html_table

Groups = OrderedDict[tuple[int, int, Selection], pa.RecordBatch]
"""Row groups in memory, by piece, group and columns; the one used last at the end."""


class AnalysisStore:
    """The results of an analysis.

    One table with a row for each example: ``example``, ``batch``, the fields per example and per batch, and
    ``latents``, a list with an entry for each activation name and latent that is not zero. In a folder it lies in
    ``shards/*.parquet``, which every reader of Parquet opens; tables of the whole run lie in ``tables/``.

    Reading streams: of each writing process one row group is in memory at a time, with the columns that are asked for.
    A store that is being written is read as it was when it was opened.

    Attributes:
        folder: Where it lies; None in memory.
    """

    def __init__(self, contents: Contents, folder: Path | None = None) -> None:
        """Use ``open`` or ``in_memory``."""
        self.folder = folder
        self._contents = contents
        self._recent: Groups = OrderedDict()

    @classmethod
    def open(cls, folder: str | Path, *, leave_out_damaged: bool = False) -> AnalysisStore:
        """Open a store, complete or not.

        Args:
            folder: The store.
            leave_out_damaged: Read an unfinished store without the files that were damaged, and warn of each.

        Raises:
            StoreError: It is none, was changed or cut short, or is of a newer version.
        """
        folder = Path(folder)
        contents = Contents.of_folder(folder, leave_out_damaged=leave_out_damaged)
        for damage in contents.damaged:
            warnings.warn(f"{damage}: {damage.batches} will be left out.", stacklevel=2)
        return cls(contents, folder)

    @property
    def manifest(self) -> Manifest:
        """What it holds and where that comes from."""
        return self._contents.manifest

    @property
    def fields(self) -> Mapping[str, Field]:
        """What is stored, tables included."""
        return self._contents.fields

    @property
    def complete(self) -> bool:
        """All batches are there and sealed."""
        return self.manifest.complete

    @property
    def schema(self) -> pa.Schema:
        """Of the rows.

        Raises:
            StoreError: There is no batch yet.
        """
        return self._rows.schema

    @property
    def batch_indices(self) -> list[int]:
        """Batches that are there, ascending."""
        return self._contents.index.batch.tolist()

    @property
    def n_batches(self) -> int:
        """Batches that are there; ``manifest.n_batches`` says how many there are to be."""
        return len(self._contents.index.batch)

    @property
    def n_examples(self) -> int:
        """Rows that are there."""
        return int(self._contents.index.rows.sum())

    def batches(self, fields: Collection[str] | None = None) -> Iterator[StoredBatch]:
        """All batches, ascending.

        Args:
            fields: Names of those to read; None: all that are not tables.

        Raises:
            StoreError: There is no such field, or a file is damaged.
        """
        if not self.n_batches:
            return iter(())
        return self._batches(self._rows.select(fields))

    def batch(self, index: int, fields: Collection[str] | None = None) -> StoredBatch:
        """One batch.

        Raises:
            StoreError: It is not there, there is no such field, or a file is damaged.
        """
        batches = self._contents.index.batch
        place = int(np.searchsorted(batches, index))
        if place == len(batches) or batches[place] != index:
            raise StoreError(f"Batch {index} is not in the store{self._named}; it has {len(batches)} batches.")
        return self._read(place, self._rows.select(fields), self._recent)

    def record_batches(self, columns: Collection[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows as they are stored, a row group at a time, in the order of the files.

        Args:
            columns: ``example`` and ``batch`` come always; names of fields, or ``latents``; None: all.

        Raises:
            StoreError: There is no such column, or a file is damaged.
        """
        if not self.n_batches:
            return iter(())
        return self._record_batches(self._rows.select(columns))

    def latents(self, columns: Collection[str] | None = None) -> Iterator[pa.RecordBatch]:
        """One row for each example, activation name and latent where a field is not zero, in the order of the files.

        A latent that is alive in a batch and zero in each of its examples has one row of zeros.

        Args:
            columns: Per-latent fields; None: all.

        Yields:
            ``example``, ``hook``, ``latent``, and the fields.

        Raises:
            StoreError: There is no such field, or no per-latent field at all.
        """
        if not self.n_batches:
            return
        known = [column.field.name for column in self._rows.sparse]
        wanted = known if columns is None else list(columns)
        if not known or set(wanted) - set(known):
            missing = ", ".join(sorted(set(wanted) - set(known))) or "any"
            raise StoreError(f"The store{self._named} has no per-latent field {missing}; it has {known or 'none'}.")
        selection = Selection((EXAMPLE,), tuple(wanted))
        for rows in self._record_batches(selection):
            lists = rows.column(LATENTS)
            examples = np.repeat(rows.column(EXAMPLE).to_numpy(), np.diff(lists.offsets.to_numpy()))
            entries = lists.flatten()
            members = {name: entries.field(name) for name in (HOOK, LATENT, *wanted)}
            yield pa.RecordBatch.from_pydict({EXAMPLE: pa.array(examples), **members})

    @property
    def tables(self) -> Mapping[str, pa.Table]:
        """Tables of the whole run, by name.

        Raises:
            StoreError: One is damaged.
        """
        if self.folder is None:
            return self._contents.tables
        return read_tables(self.folder, Manifest.read(self.folder))

    def add_table(self, name: str, table: pa.Table) -> None:
        """Write a table of the whole run, in place of one of that name; also into a sealed store.

        Raises:
            StoreError: The name is none, or it cannot be written.
        """
        check_name(name, "a table")
        if self.folder is None:
            self._contents.tables[name] = table
        else:
            put_table(self.folder, name, table)

    def unfolded_bytes(self) -> int:
        """About how many bytes all rows and tables take in memory, as their files say; nothing but footers is read.

        Raises:
            StoreError: A table is damaged.
        """
        rows = sum(
            piece.unfolded_bytes if isinstance(piece, ShardPiece) else piece.rows.nbytes
            for piece in self._contents.pieces
        )
        tables = sum(table.nbytes for table in self._contents.tables.values())
        return rows + tables + (unfolded_tables(self.folder, self.manifest) if self.folder is not None else 0)

    def verify(self) -> None:
        """Compare all files with their digests. Those of the journal were, when the store was opened.

        Raises:
            StoreError: A file was changed, is missing, or does not belong there.
        """
        if self.folder is not None:
            shards = [piece for piece in self._contents.pieces if isinstance(piece, ShardPiece)]
            check_files(self.folder, Manifest.read(self.folder), shards)

    def __repr__(self) -> str:
        state = "complete" if self.complete else "not complete"
        return f"AnalysisStore({self.folder or 'in memory'}, {self.n_batches} batches, {state})"

    def _repr_html_(self) -> str:
        rows = [
            {
                "field": item.name,
                "type": item.dtype + "[]" * item.ragged,
                "one for each": item.per,
                "what": item.about,
            }
            for item in self.fields.values()
        ]
        return html_table(f"{self!r}, {self.n_examples:,} examples", rows)

    @property
    def _named(self) -> str:
        return f" {self.folder}" if self.folder else " in memory"

    @property
    def _rows(self) -> Rows:
        if self._contents.rows is None:
            raise StoreError(f"The store{self._named} has no batch yet.")
        return self._contents.rows

    def _batches(self, selection: Selection) -> Iterator[StoredBatch]:
        recent: Groups = OrderedDict()
        for place in range(self.n_batches):
            yield self._read(place, selection, recent)

    def _read(self, place: int, selection: Selection, recent: Groups) -> StoredBatch:
        """The batch at a place of the index; row groups that neighbours need are kept."""
        index = self._contents.index
        number, group = int(index.piece[place]), int(index.group[place])
        piece = self._contents.pieces[number]
        if isinstance(piece, MemoryPiece):
            rows = piece.rows
        else:
            key = number, group, selection
            if key not in recent:
                while len(recent) >= self._open_groups:
                    recent.popitem(last=False)
                recent[key] = piece.read(group, selection, self._contents.hooks)
            recent.move_to_end(key)
            rows = recent[key]
        rows = rows.slice(int(index.offset[place]), int(index.rows[place]))
        layout = piece.notes.layouts[index.layout[place]]
        return self._rows.decode(rows, selection, int(index.batch[place]), layout, piece.notes.widths)

    @property
    def _open_groups(self) -> int:
        """Row groups in memory: one for each process that wrote, whose batches alternate, and one to go on to."""
        writers = {piece.name.partition("-")[0] for piece in self._contents.pieces if isinstance(piece, ShardPiece)}
        return 1 + len(writers)

    def _record_batches(self, selection: Selection) -> Iterator[pa.RecordBatch]:
        schema = self._rows.schema_of(selection)
        for piece in list(self._contents.pieces):
            for group in range(len(piece.groups)):
                rows = piece.read(group, selection, self._contents.hooks)
                yield pa.RecordBatch.from_arrays([rows.column(name) for name in schema.names], schema=schema)


T = TypeVar("T")


class BatchSequence(Sequence[T], Generic[T]):
    """Something of each batch of a store, in order; memory holds one batch at a time."""

    def __init__(self, store: AnalysisStore | None, fields: Sequence[str], make: Callable[[StoredBatch], T]) -> None:
        """Look at fields of a store, out of which ``make`` makes the entry of a batch; None: there are no batches."""
        self._store, self._fields, self._make = store, list(fields), make

    def __len__(self) -> int:
        return 0 if self._store is None else self._store.n_batches

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if self._store is None or not -len(self) <= index < len(self):
            raise IndexError(f"There is no batch {index}; there are {len(self)}.")
        return self._make(self._store.batch(self._store.batch_indices[index], self._fields))

    def __iter__(self) -> Iterator[T]:
        if self._store is not None:
            yield from map(self._make, self._store.batches(self._fields))
