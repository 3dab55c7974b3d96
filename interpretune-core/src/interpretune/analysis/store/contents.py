"""Which batches a store has, and where each of them lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from attrs import frozen
from numpy.typing import NDArray

from interpretune.analysis.fields import Field
from interpretune.analysis.store.declared import check_fields
from interpretune.analysis.store.disk import read_refused
from interpretune.analysis.store.manifest import Manifest
from interpretune.analysis.store.notes import Notes, merge_widths
from interpretune.analysis.store.pieces import (
    MemoryPiece,
    Piece,
    ShardPiece,
    journal_files,
    read_journal,
    shard_files,
)
from interpretune.analysis.store.rows import Rows
from interpretune.errors import StoreError


@frozen(eq=False)
class Index:
    """The batches of some pieces, ascending; all arrays ``[batches]``.

    Attributes:
        batch: Index of the batch.
        piece: Position of its piece.
        group: Group of rows in the piece.
        offset: Its first row in the group.
        rows: Its rows.
        layout: Position among the piece's layouts.
    """

    batch: NDArray[np.int64]
    piece: NDArray[np.int64]
    group: NDArray[np.int64]
    offset: NDArray[np.int64]
    rows: NDArray[np.int64]
    layout: NDArray[np.int64]

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> Index:
        """Look through pieces.

        Raises:
            StoreError: A batch is there twice.
        """
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


class Contents:
    """Manifest and pieces of a store, as they were when it was opened; in memory they grow.

    Attributes:
        manifest: The manifest.
        fields: What is stored, by name.
        pieces: Pieces of the table.
        rows: Its columns; None while there is no batch.
        tables: Tables of the whole run, in memory.
    """

    def __init__(self, manifest: Manifest, pieces: Sequence[Piece] = ()) -> None:
        """Check the pieces.

        Raises:
            StoreError: Columns are not what the manifest declares.
        """
        self.manifest = manifest
        self.fields = check_fields(manifest.fields)
        self.pieces: list[Piece] = list(pieces)
        self.rows: Rows | None = None
        self.tables: dict[str, pa.Table] = {}
        for piece in self.pieces:
            self.rows = check_schema(piece, self.fields, self.rows)
        self.widths = merge_widths([piece.notes for piece in self.pieces])
        self._index: tuple[int, Index] | None = None

    @classmethod
    def of_folder(cls, folder: Path, *, skip_damaged: bool = False) -> Contents:
        """Look through a store on disk.

        Args:
            folder: The store.
            skip_damaged: Take a damaged journal file for absent, as a writer does, who computes its batch anew.

        Raises:
            StoreError: It is none, or is damaged.
        """
        journals = read_journals(
            folder, skip_damaged=skip_damaged
        )  # before the shards that a writer may move them into meanwhile
        manifest = Manifest.read(folder)
        if not manifest.complete:
            shards = [ShardPiece(path) for path in shard_files(folder)]
            return cls(manifest, [*shards, *not_in_shards(journals, shards)])
        shards = []
        for entry in manifest.shards:
            piece = ShardPiece(folder / entry.file)
            if sorted(piece.notes.index.tolist()) != list(entry.batches) or piece.notes.rows.sum() != entry.rows:
                raise StoreError(
                    f"{piece.path} does not have the batches that the manifest lists. Copy the store anew."
                )
            shards.append(piece)
        return cls(manifest, shards)

    def add(self, piece: MemoryPiece) -> None:
        """One more batch, of a store in memory."""
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
    """The columns of a piece.

    Args:
        piece: A piece.
        fields: What the store declares.
        rows: Columns of the pieces before.

    Raises:
        StoreError: They are not what is declared, or not those of the other pieces.
    """
    schema = piece.schema if isinstance(piece, ShardPiece) else piece.rows.schema
    try:
        found = Rows.of_arrow(fields, schema)
        _check_layouts(piece.notes, found)
    except ValueError as error:
        raise read_refused(Path(piece.name), error) from error
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


def read_journals(folder: Path, *, skip_damaged: bool = False) -> list[MemoryPiece]:
    """Batches that are in no shard yet.

    Raises:
        StoreError: One is damaged.
    """
    found = [_read_journal(path, skip_damaged) for path in journal_files(folder)]
    return [piece for piece in found if piece is not None]


def _read_journal(path: Path, skip_damaged: bool) -> MemoryPiece | None:
    try:
        return read_journal(path)
    except FileNotFoundError:  # its writer has just moved it into a shard
        return None
    except StoreError:
        if skip_damaged:
            return None
        raise


def not_in_shards(journals: Sequence[MemoryPiece], shards: Sequence[ShardPiece]) -> list[MemoryPiece]:
    """Journal files without those of a writer that was killed after it had written them to a shard."""
    sealed = {index for shard in shards for index in shard.notes.index.tolist()}
    return [piece for piece in journals if piece.notes.index[0] not in sealed]


def batches_there(folder: Path) -> set[int]:
    """Batches of an unsealed store, of all ranks.

    Raises:
        StoreError: A shard is damaged.
    """
    journals = read_journals(folder, skip_damaged=True)
    pieces: list[Piece] = [*journals, *(ShardPiece(path) for path in shard_files(folder))]
    return {index for piece in pieces for index in piece.notes.index.tolist()}
