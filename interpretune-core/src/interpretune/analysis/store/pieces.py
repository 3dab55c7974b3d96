"""Pieces of a store's table: sealed shards, journal files of single batches, and batches in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interpretune.analysis.store.disk import JOURNAL, SHARDS, read_refused, whole_file
from interpretune.analysis.store.latents import HOOK, HOOK_TYPE, LATENT, LATENTS, hook_array, hook_codes
from interpretune.analysis.store.notes import METADATA, Notes
from interpretune.analysis.store.rows import Selection
from interpretune.errors import StoreError

GROUP_ROWS = 2048
"""Rows of a row group, unless they are large: what is in memory at a time, for each rank, when a store is read."""
GROUP_BYTES = 16 << 20


class MemoryPiece:
    """A batch in memory.

    Attributes:
        name: For errors.
        rows: Its rows.
        notes: Of the one batch.
        groups: Batches of each group of rows that is read at a time.
    """

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

    Attributes:
        path: The file.
        name: Its name.
        notes: Of its batches.
        schema: Its Arrow schema.
        groups: Number of batches in each row group.
    """

    def __init__(self, path: Path) -> None:
        """Read the footer.

        Raises:
            StoreError: The file is damaged or not of a store.
        """
        self.path, self.name = path, path.name
        try:
            with pq.ParquetFile(path) as file:
                self._metadata, self.schema = file.metadata, file.schema_arrow
            self.notes = Notes.from_json((self._metadata.metadata or {})[METADATA])
            self.groups = self._batches_of_groups()
        except KeyError as error:
            raise read_refused(path, ValueError("it has no notes on its batches")) from error
        except (OSError, ValueError) as error:  # Arrow's errors are among them
            raise read_refused(path, error) from error

    def _batches_of_groups(self) -> list[int]:
        ends = np.cumsum(self.notes.rows)
        starts = [self._metadata.row_group(group).num_rows for group in range(self._metadata.num_row_groups)]
        counts = np.searchsorted(ends, np.cumsum(starts)) + 1
        if not len(ends) or not starts or not np.array_equal(ends[counts.clip(max=len(ends)) - 1], np.cumsum(starts)):
            raise ValueError("its row groups are not those of its batches")
        if counts[-1] != len(ends):
            raise ValueError("it lacks rows of its batches")
        return np.diff(counts, prepend=0).tolist()

    def read(self, group: int, selection: Selection, hooks: Sequence[str]) -> pa.RecordBatch:
        """Rows of a group with the selected columns, activation names coded as in ``hooks``.

        Raises:
            StoreError: The file is damaged.
        """
        coded = [f"{LATENTS}.list.element.{HOOK}"] if selection.latents is not None else None
        try:
            with pq.ParquetFile(
                self.path, metadata=self._metadata, read_dictionary=coded, page_checksum_verification=True
            ) as file:
                table = file.read_row_group(group, columns=selection.paths, use_threads=False)
            arrays = {name: _one(table.column(name)) for name in selection.columns}
            if selection.latents is not None:
                arrays[LATENTS] = _with_hooks(_one(table.column(LATENTS)), hooks, selection.latents)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise read_refused(self.path, error) from error
        return pa.RecordBatch.from_pydict(arrays)


Piece = MemoryPiece | ShardPiece


def read_journal(path: Path) -> MemoryPiece:
    """A journal file.

    Raises:
        FileNotFoundError: It was moved into a shard meanwhile.
        StoreError: It is damaged.
    """
    try:
        with pa.ipc.open_file(pa.py_buffer(path.read_bytes())) as reader:
            rows = reader.get_batch(0)
            notes = Notes.from_json((rows.schema.metadata or {})[METADATA])
            whole = reader.num_record_batches == 1 and notes.rows.tolist() == [rows.num_rows]
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise _cut_short(path, str(error)) from error
    if not whole:
        raise _cut_short(path, "it is not one batch")
    return MemoryPiece(path.name, rows, notes)


def _cut_short(path: Path, reason: str) -> StoreError:
    return StoreError(
        f"{path} was cut short, as by a power cut ({reason}). Start the same run again: it computes that batch anew."
    )


def write_journal(path: Path, rows: pa.RecordBatch, notes: Notes) -> int:
    """Put a batch into a journal file, in one step.

    Returns:
        Bytes of the file.

    Raises:
        StoreError: It cannot be written.
    """
    sink = pa.BufferOutputStream()
    schema = rows.schema.with_metadata({METADATA: notes.to_json()})
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(rows.replace_schema_metadata(schema.metadata))
    content = sink.getvalue()
    with whole_file(path) as partial:
        partial.write_bytes(content)
    return content.size


def write_shard(path: Path, notes: Notes, pieces: Iterable[MemoryPiece]) -> None:
    """Put batches into a Parquet file, in one step; it is on the disk afterwards.

    Args:
        path: Final place.
        notes: Of all batches, in the order of ``pieces``.
        pieces: The batches.

    Raises:
        StoreError: It cannot be written.
    """
    pieces = iter(pieces)
    first = next(pieces)
    schema = first.rows.schema.with_metadata({METADATA: notes.to_json()})
    hooks = list(notes.widths)
    words = [item.name for item in schema if pa.types.is_string(item.type)]
    words += [f"{item.name}.list.element" for item in schema if _is_words(item.type)]
    words += [f"{LATENTS}.list.element.{HOOK}"] if LATENTS in schema.names else []
    with (
        whole_file(path, durable=True) as partial,
        pq.ParquetWriter(
            partial, schema, compression="zstd", use_dictionary=words or False, write_page_checksum=True
        ) as writer,
    ):
        waiting: list[pa.RecordBatch] = []
        rows = size = 0
        for piece in itertools.chain((first,), pieces):
            waiting.append(_coded(piece.rows, schema, hooks))
            rows, size = rows + waiting[-1].num_rows, size + waiting[-1].nbytes
            if rows >= GROUP_ROWS or size >= GROUP_BYTES:
                _write_group(writer, waiting)
                waiting, rows, size = [], 0, 0
        _write_group(writer, waiting)


def _coded(rows: pa.RecordBatch, schema: pa.Schema, hooks: Sequence[str]) -> pa.RecordBatch:
    """Rows with the schema of a file, activation names coded as in ``hooks``."""
    arrays = [_with_hooks(rows.column(name), hooks) if name == LATENTS else rows.column(name) for name in schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _write_group(writer: pq.ParquetWriter, waiting: Sequence[pa.RecordBatch]) -> None:
    if waiting:
        table = pa.Table.from_batches(waiting)
        writer.write_table(table, row_group_size=len(table))


def _is_words(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) and pa.types.is_string(kind.value_type)


def journal_files(folder: Path, start: str = "") -> list[Path]:
    """Journal files of a store, or of one rank."""
    return sorted((folder / JOURNAL).glob(f"{start}*.arrow"))


def shard_files(folder: Path, start: str = "") -> list[Path]:
    """Shards of a store, or of one rank."""
    return sorted((folder / SHARDS).glob(f"{start}*.parquet"))


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
