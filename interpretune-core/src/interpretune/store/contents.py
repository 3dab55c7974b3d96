"""Which batches a store has, where each of them lies, and what is done about files that were damaged."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from attrs import evolve, frozen
from numpy.typing import NDArray

from interpretune.errors import StoreError
from interpretune.store.batch_notes import Notes, merge_widths
from interpretune.store.fields import Field, check_fields
from interpretune.store.folder import holding_manifest, read_refused, remove, shard_number
from interpretune.store.journal import journal_files, parse_journal, read_bytes
from interpretune.store.manifest import Manifest
from interpretune.store.manifest_parts import ShardEntry
from interpretune.store.rows import Rows
from interpretune.store.shards import MemoryPiece, Piece, ShardPiece


@frozen(eq=False)
class Index:
    """Where the batches of some pieces are, ascending; ``offset`` is in the group of rows; all arrays ``[batches]``."""

    batch: NDArray[np.int64]
    piece: NDArray[np.int64]
    group: NDArray[np.int64]
    offset: NDArray[np.int64]
    rows: NDArray[np.int64]
    layout: NDArray[np.int64]

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> Index:
        """Look through pieces; no batch may be there twice."""
        parts = [np.zeros((6, 0), dtype=np.int64)]
        for number, piece in enumerate(pieces):
            notes = piece.notes
            group = np.repeat(np.arange(len(piece.groups)), piece.groups)
            starts = np.cumsum(notes.rows) - notes.rows
            first = np.cumsum(piece.groups) - piece.groups  # first batch of each group
            offset = starts - starts[first][group]
            parts.append(np.stack([notes.index, np.full(len(group), number), group, offset, notes.rows, notes.layout]))
        every = np.concatenate(parts, axis=1)
        every = every[:, np.argsort(every[0], kind="stable")]
        twice = np.flatnonzero(every[0, 1:] == every[0, :-1])
        if len(twice):
            one, other = (pieces[every[1, twice[0] + i]].name for i in (0, 1))
            raise StoreError(
                f"Batch {every[0, twice[0]]} is there twice, in {one} and in {other}. Each batch is one process's: "
                "remove one of the files and start the run again."
            )
        return cls(*every)


@frozen
class Damage:
    """A file that is not what its writer wrote.

    Attributes:
        path: The file.
        shard: Its entry in the manifest; None: it is a journal file.
        error: What is wrong with it.
    """

    path: Path
    shard: ShardEntry | None
    error: StoreError

    def __str__(self) -> str:
        reason = " ".join(str(self.error.__cause__ or self.error).split())
        return f"{self.path} is damaged ({reason})"

    @property
    def batches(self) -> str:
        """Which batches are lost, in words."""
        if self.shard is None:
            index = self.path.stem.rpartition("-")[2]
            return f"batch {int(index)}" if index.isdecimal() else "its batch"
        there = self.shard.batches
        shown = ", ".join(map(str, there[:10])) + (", ..." if len(there) > 10 else "")
        return f"batch {shown}" if len(there) == 1 else f"{len(there)} batches ({shown})"


class Contents:
    """Manifest and pieces of a store, as they were when it was opened; in memory they grow."""

    def __init__(self, manifest: Manifest, pieces: Sequence[Piece] = ()) -> None:
        """Hold the columns of all pieces to what the manifest declares."""
        self.manifest = manifest
        self.fields = check_fields(manifest.fields)
        self.pieces: list[Piece] = list(pieces)
        self.rows: Rows | None = None
        self.tables: dict[str, pa.Table] = {}
        self.damaged: tuple[Damage, ...] = ()
        for piece in self.pieces:
            self.rows = check_schema(piece, self.fields, self.rows)
        self.widths = merge_widths([piece.notes for piece in self.pieces])
        self._index: tuple[int, Index] | None = None

    @classmethod
    def of_folder(cls, folder: Path, *, leave_out_damaged: bool = False) -> Contents:
        """Look through a store on disk.

        Args:
            folder: The store.
            leave_out_damaged: Take damaged files of an unfinished store for absent, as a writer does who computes their
                batches anew; ``damaged`` tells which. All shards are compared with their digests then.
        """
        manifest = Manifest.read(folder)
        journals: list[MemoryPiece | Damage] = []
        if not manifest.complete:
            found = _journal_bytes(folder)  # before the list of shards that a writer may move them into meanwhile
            manifest = Manifest.read(folder)
            fields = check_fields(manifest.fields)
            journals = [_journal(path, content, manifest.key, fields) for path, content in found]
        shards = [_shard(folder, entry, check=leave_out_damaged) for entry in manifest.shards]
        damaged = [piece for piece in (*shards, *journals) if isinstance(piece, Damage)]
        if damaged and (manifest.complete or not leave_out_damaged):
            raise damaged[0].error
        whole = [piece for piece in shards if isinstance(piece, ShardPiece)]
        left = not_in_shards([piece for piece in journals if isinstance(piece, MemoryPiece)], whole)
        contents = cls(manifest, [*whole, *left])
        contents.damaged = tuple(damaged)
        return contents

    def add(self, rows: pa.RecordBatch, notes: Notes) -> None:
        """One more batch, of a store in memory."""
        piece = MemoryPiece(f"batch {notes.index[0]}", rows, notes)
        self.rows = check_schema(piece, self.fields, self.rows)
        self.widths |= piece.notes.widths
        self.pieces.append(piece)

    @property
    def hooks(self) -> list[str]:
        """All activation names."""
        return list(self.widths)

    @property
    def index(self) -> Index:
        """Where each batch lies."""
        if self._index is None or self._index[0] != len(self.pieces):
            self._index = len(self.pieces), Index.of(self.pieces)
        return self._index[1]


def check_schema(piece: Piece, fields: Mapping[str, Field], rows: Rows | None) -> Rows:
    """The columns of a piece: what the store declares, and those of the pieces before (``rows``)."""
    schema = piece.schema if isinstance(piece, ShardPiece) else piece.rows.schema
    try:
        found = Rows.of_arrow(fields, schema)
        _check_layouts(piece.notes, found)
    except ValueError as error:
        where = piece.path if isinstance(piece, ShardPiece) else Path(piece.name)
        raise read_refused(where, error) from error
    if rows is not None and found.columns != rows.columns:
        unlike = next(name for name in rows.columns if found.columns[name] != rows.columns[name])
        raise StoreError(
            f"{piece.name} keeps {unlike} as {found.columns[unlike].expected()} and other files of the store as "
            f"{rows.columns[unlike].expected()}. All processes of a run compute in one dtype and with the same sizes."
        )
    return found if rows is None else rows


def _check_layouts(notes: Notes, rows: Rows) -> None:
    sparse, dense = ({column.field.name for column in columns} for columns in (rows.sparse, rows.dense))
    if any({name for name, _ in item.hooks} != sparse or set(item.numbers) - dense for item in notes.layouts):
        raise ValueError("its notes are on other fields than it has")


def not_in_shards(journals: Sequence[MemoryPiece], shards: Sequence[ShardPiece]) -> list[MemoryPiece]:
    """Journal files without those of a writer that was killed after it had written them to a shard."""
    sealed = {index for shard in shards for index in shard.notes.index.tolist()}
    return [piece for piece in journals if piece.notes.index[0] not in sealed]


def batches_there(folder: Path) -> set[int]:
    """Batches of an unsealed store, of all ranks."""
    found = _journal_bytes(folder)
    manifest = Manifest.read(folder)
    fields = check_fields(manifest.fields)
    pieces = [_journal(path, content, manifest.key, fields) for path, content in found]
    there = {index for entry in manifest.shards for index in entry.batches}
    return there | {int(piece.notes.index[0]) for piece in pieces if isinstance(piece, MemoryPiece)}


def _journal_bytes(folder: Path) -> list[tuple[Path, bytes | OSError]]:
    """What is in the journal files, but those that their writer has just moved into a shard."""
    found = []
    for path in journal_files(folder):
        with suppress(FileNotFoundError):
            found.append((path, read_bytes(path)))
    return found


def _journal(path: Path, content: bytes | OSError, key: str, fields: Mapping[str, Field]) -> MemoryPiece | Damage:
    try:
        return parse_journal(path, content, key, fields)
    except StoreError as error:
        return Damage(path, None, error)


def _shard(folder: Path, entry: ShardEntry, *, check: bool) -> ShardPiece | Damage:
    try:
        piece = ShardPiece(folder, entry)
        if check:
            piece.check()
    except StoreError as error:
        return Damage(folder / entry.file, entry, error)
    return piece


def mended_contents(folder: Path) -> Contents:
    """What a writer finds in a store: damaged shards are taken out of an unfinished one, and a warning names each file.

    Journal files stay: each rank removes its own when it starts.

    Raises:
        StoreError: The store is none, the manifest cannot be written, or a file not removed.
    """
    contents = Contents.of_folder(folder, leave_out_damaged=True)
    if any(item.shard is not None for item in contents.damaged):
        with holding_manifest(folder):  # looked at again: another rank may have mended it, and gone on, meanwhile
            contents = Contents.of_folder(folder, leave_out_damaged=True)
            forget_shards(folder, contents.damaged)
    for item in contents.damaged:
        warnings.warn(f"{item}: {item.batches} will be run again.", stacklevel=4)
    return contents


def forget_shards(folder: Path, damaged: Sequence[Damage]) -> None:
    """Take damaged shards out of an unfinished store whose manifest is held, or that nobody else knows.

    No later shard gets the number of one of them.
    """
    lost = {item.shard for item in damaged if item.shard is not None}
    if not lost:
        return
    manifest = Manifest.read(folder)
    kept = tuple(entry for entry in manifest.shards if entry not in lost)
    above = max(shard_number(entry.file) for entry in lost) + 1
    evolve(manifest, shards=kept, next_shard=max(manifest.next_shard, above)).write(folder)
    for entry in lost:
        remove(folder / entry.file)
