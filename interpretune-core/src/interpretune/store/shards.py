"""Shards: Parquet files with a digest, read a row group at a time, and the same of batches in memory."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from interpretune.errors import StoreError
from interpretune.store.batch_notes import METADATA, Notes
from interpretune.store.folder import read_refused, whole_file
from interpretune.store.latents import HOOK, HOOK_TYPE, LATENT, LATENTS, hook_array, hook_codes
from interpretune.store.manifest_parts import ShardEntry
from interpretune.store.rows import Selection, check_rows
from interpretune.system.plain_files import open_plain, stream_sha256

MOST_TEXT = 256 << 20
"""Bytes of text in a group of rows, beyond which it must not be more than ``MOST_TIMES`` what is read from the disk."""
MOST_TIMES = 100
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
"""Bytes of a value by its type in the file."""


def unfolded_bytes(metadata: pq.FileMetaData) -> int:
    """Bytes of all values, as the footer counts them; texts count as they lie in the file, see ``unfold_text``."""
    total = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for number in range(row_group.num_columns):
            column = row_group.column(number)
            width = _WIDTHS.get(column.physical_type, 0)
            total += max(column.num_values * width, column.total_uncompressed_size)
    return total


def unfold_text(array: pa.Array, read: int) -> pa.Array:
    """Texts, or lists of texts, that were read as codes.

    Args:
        array: The column.
        read: Bytes of the group of rows in the file.

    Raises:
        ValueError: A few texts are repeated so often that they would fill the memory.
    """
    if pa.types.is_list(array.type):
        flat = unfold_text(array.flatten(), read)
        offsets = array.offsets.to_numpy()
        kind = pa.list_(pa.field("element", flat.type))
        return pa.ListArray.from_arrays(pa.array(offsets - offsets[0]), flat, type=kind)
    if not pa.types.is_dictionary(array.type):
        return array
    if array.null_count:
        raise ValueError("a text is missing")
    lengths = pc.binary_length(array.dictionary).to_numpy().astype(np.int64)
    total = int(np.bincount(array.indices.to_numpy(), minlength=len(lengths)) @ lengths) if len(array) else 0
    if total > max(MOST_TEXT, MOST_TIMES * read):
        raise ValueError(f"its texts unfold from {read:,} to {total:,} bytes, as a decompression bomb does")
    return array.cast(array.type.value_type)


class CheckedFile:
    """Opens a file for its values once its digest was found right; the bytes are hashed once, not at each opening."""

    def __init__(self, path: Path, sha256: str) -> None:
        self.path, self.sha256 = path, sha256
        self._state: tuple[int, ...] | None = None
        self._right = False

    def peek(self) -> BinaryIO:
        """Open it to see what it says it has, before anything was hashed.

        Raises:
            OSError: It is no plain file, or cannot be opened.
            ValueError: It is another file than at the first look.
        """
        file = open_plain(self.path)
        found = os.fstat(file.fileno())
        state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if self._state not in (None, state):
            file.close()
            raise ValueError("it was changed since the store was opened")
        self._state = state
        return file

    def open(self) -> BinaryIO:
        """Open it for its values (``OSError``: no plain file or unreadable; ``ValueError``: changed)."""
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(self.peek())
            if not self._right:
                if stream_sha256(file) != self.sha256:
                    raise ValueError("its content is not what the manifest lists")
                self._right = True
                file.seek(0)
            stack.pop_all()  # whoever asked for it closes it
        return file

    def check(self) -> None:
        """Hash all of it, whether it was hashed before or not; raises what ``open`` raises."""
        self._right = False
        self.open().close()


class HashedFile:
    """An open file that hashes what is written to it, front to back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self.closed = False

    def write(self, data: Any) -> int:
        """Write bytes."""
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Hand them to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Leave the file to whoever opened it."""
        self.closed = True

    def sha256(self) -> str:
        """Of what was written, 64 hexadecimal digits."""
        return self._digest.hexdigest()


GROUP_ROWS = 2048
"""Rows of a row group, unless they are large: what is in memory at a time, for each rank, when a store is read."""
GROUP_BYTES = 16 << 20
UNREADABLE = (OSError, ValueError, LookupError, MemoryError, pa.ArrowException)
"""What reading a damaged file raises."""


class MemoryPiece:
    """A batch in memory."""

    def __init__(self, name: str, rows: pa.RecordBatch, notes: Notes) -> None:
        self.name, self.rows, self.notes = name, rows, notes
        self.groups = [len(notes.index)]

    def read(self, group: int, selection: Selection, hooks: Sequence[str]) -> pa.RecordBatch:
        """Rows of a group with the selected columns, activation names coded as in ``hooks``."""
        arrays = {name: self.rows.column(name) for name in selection.columns}
        if selection.latents is not None:
            arrays[LATENTS] = _with_hooks(self.rows.column(LATENTS), hooks, selection.latents)
        return pa.RecordBatch.from_pydict(arrays)


class ShardPiece:
    """A Parquet file; rows are read a row group at a time.

    What the footer says is known at once. Before the first rows are read, all of the file is compared with its digest.
    """

    def __init__(self, folder: Path, entry: ShardEntry) -> None:
        """Read the footer, and hold it to what the manifest says of the file."""
        self.path = folder / entry.file
        self.name = self.path.name
        self.file = CheckedFile(self.path, entry.sha256)
        try:
            with self.file.peek() as opened, pq.ParquetFile(opened) as file:
                self._metadata, self.schema = file.metadata, file.schema_arrow
            self.notes = Notes.of_metadata(self._metadata.metadata)
            self.groups = self._batches_of_groups()
        except UNREADABLE as error:
            raise read_refused(self.path, error) from error
        listed = entry.n_batches == len(self.notes.index) and entry.rows == int(self.notes.rows.sum())
        if not listed or sorted(self.notes.index.tolist()) != list(entry.batches):
            raise StoreError(f"{self.path} does not have the batches that the manifest lists. Copy the store anew.")

    def _batches_of_groups(self) -> list[int]:
        ends = np.cumsum(self.notes.rows)
        starts = [self._metadata.row_group(group).num_rows for group in range(self._metadata.num_row_groups)]
        counts = np.searchsorted(ends, np.cumsum(starts)) + 1
        if not len(ends) or not starts or not np.array_equal(ends[counts.clip(max=len(ends)) - 1], np.cumsum(starts)):
            raise ValueError("its row groups are not those of its batches")
        if counts[-1] != len(ends):
            raise ValueError("it lacks rows of its batches")
        return np.diff(counts, prepend=0).tolist()

    @property
    def unfolded_bytes(self) -> int:
        """About how many bytes its values take in memory, as its footer says."""
        return unfolded_bytes(self._metadata)

    def check(self) -> None:
        """Compare all of the file with its digest, also where that was done before."""
        try:
            self.file.check()
        except (OSError, ValueError) as error:
            raise read_refused(self.path, error) from error

    def read(self, group: int, selection: Selection, hooks: Sequence[str]) -> pa.RecordBatch:
        """Rows of a group with the selected columns, activation names coded as in ``hooks``."""
        coded = [f"{LATENTS}.list.element.{HOOK}"] if selection.latents is not None else []
        words = [name for name in selection.columns if _holds_text(self.schema.field(name).type)]
        coded += [_path(self.schema.field(name)) for name in words]
        first = sum(self.groups[:group])
        batches = slice(first, first + self.groups[group])
        try:
            found = {self._metadata.schema.column(i).path for i in range(self._metadata.num_columns)}
            if lacking := set(coded) - found:
                raise ValueError(f"it lacks the column {min(lacking)}")
            with (
                self.file.open() as opened,
                pq.ParquetFile(
                    opened, metadata=self._metadata, read_dictionary=coded, page_checksum_verification=True
                ) as file,
            ):
                table = file.read_row_group(group, columns=selection.paths, use_threads=False)
            arrays = {name: _one(table.column(name)) for name in selection.columns}
            read = self._metadata.row_group(group).total_byte_size
            arrays |= {name: unfold_text(arrays[name], read) for name in words}
            if selection.latents is not None:
                arrays[LATENTS] = _one(table.column(LATENTS))
            rows = pa.RecordBatch.from_pydict(arrays)
            check_rows(rows, self.notes.index[batches], self.notes.rows[batches], self.notes.widths)
            if selection.latents is not None:
                arrays[LATENTS] = _with_hooks(arrays[LATENTS], hooks, selection.latents)
        except UNREADABLE as error:
            raise read_refused(self.path, error) from error
        return pa.RecordBatch.from_pydict(arrays)


Piece = MemoryPiece | ShardPiece


def write_shard(path: Path, notes: Notes, pieces: Iterable[MemoryPiece]) -> str:
    """Put batches into a Parquet file, in one step, and onto the disk; returns the SHA-256 of what was written."""
    pieces = iter(pieces)
    first = next(pieces)
    schema = first.rows.schema.with_metadata({METADATA: notes.to_json()})
    hooks = list(notes.widths)
    words = [_path(item) for item in schema if _holds_text(item.type)]
    words += [f"{LATENTS}.list.element.{HOOK}"] if LATENTS in schema.names else []
    with whole_file(path, durable=True) as partial, partial.open("wb") as out:
        hashed = HashedFile(out)
        with pq.ParquetWriter(
            hashed, schema, compression="zstd", use_dictionary=words or False, write_page_checksum=True
        ) as writer:
            waiting: list[pa.RecordBatch] = []
            rows = size = 0
            for piece in itertools.chain((first,), pieces):
                waiting.append(_coded(piece.rows, schema, hooks))
                rows, size = rows + waiting[-1].num_rows, size + waiting[-1].nbytes
                if rows >= GROUP_ROWS or size >= GROUP_BYTES:
                    _write_group(writer, waiting)
                    waiting, rows, size = [], 0, 0
            _write_group(writer, waiting)
    return hashed.sha256()


def _coded(rows: pa.RecordBatch, schema: pa.Schema, hooks: Sequence[str]) -> pa.RecordBatch:
    """Rows with the schema of a file, activation names coded as in ``hooks``."""
    arrays = [_with_hooks(rows.column(name), hooks) if name == LATENTS else rows.column(name) for name in schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _write_group(writer: pq.ParquetWriter, waiting: Sequence[pa.RecordBatch]) -> None:
    if waiting:
        table = pa.Table.from_batches(waiting)
        writer.write_table(table, row_group_size=len(table))


def _holds_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or (pa.types.is_list(kind) and pa.types.is_string(kind.value_type))


def _path(item: pa.Field) -> str:
    """Path of a column of texts, or of lists of texts, in a Parquet file."""
    return f"{item.name}.list.element" if pa.types.is_list(item.type) else str(item.name)


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _with_hooks(lists: pa.Array, hooks: Sequence[str], members: Sequence[str] | None = None) -> pa.Array:
    """The sparse column with other codes for activation names, and only some of its fields."""
    entries = lists.flatten()
    kinds = {item.name: item for item in entries.type}
    names = [HOOK, LATENT, *([name for name in kinds if name not in (HOOK, LATENT)] if members is None else members)]
    codes = hook_array(hook_codes(entries.field(HOOK), hooks), hooks)
    fields = [pa.field(HOOK, HOOK_TYPE, nullable=False), *(kinds[name] for name in names[1:])]
    struct = pa.StructArray.from_arrays([codes, *(entries.field(name) for name in names[1:])], fields=fields)
    offsets = lists.offsets.to_numpy()
    kind = pa.list_(pa.field("element", struct.type, nullable=False))
    return pa.ListArray.from_arrays(pa.array(offsets - offsets[0]), struct, type=kind)
