"""The journal of a writer: its last batches, a file each, until they are enough for a shard."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
from attrs import frozen
from filelock import BaseFileLock

from interpretune.analysis.store.disk import JOURNAL, SHARDS, rank_prefix, remove, remove_partials
from interpretune.analysis.store.notes import Notes
from interpretune.analysis.store.pieces import (
    journal_files,
    read_journal,
    shard_files,
    write_journal,
    write_shard,
)
from interpretune.errors import StoreError

ROWS_PER_SHARD = 10_000
JOURNAL_BYTES = 64 << 20
"""Bytes after which a journal becomes a shard, however few rows they are."""


@frozen(eq=False)
class _Entry:
    path: Path
    size: int
    notes: Notes


class Journal:
    """The journal files and shards of one rank.

    A batch is first a file in ``journal/``; ``roll`` moves all files into one shard. The shard is on the disk under its
    name before the first file is removed, and says which batches it has, so that whoever finds both drops the file.
    """

    def __init__(self, folder: Path, rank: int, lock: BaseFileLock, rows_per_shard: int = ROWS_PER_SHARD) -> None:
        """Take over a rank.

        Args:
            folder: The store.
            rank: The rank.
            lock: Held for it.
            rows_per_shard: Rows after which the journal becomes a shard.
        """
        self._folder, self._prefix, self._lock = folder, rank_prefix(rank), lock
        self._rows_per_shard = rows_per_shard
        self._entries: dict[int, _Entry] = {}
        self._rows = self._size = 0

    def recover(self, sealed: Collection[int]) -> None:
        """Find what an earlier writer of the rank left.

        Args:
            sealed: Batches that are in shards.

        Raises:
            StoreError: A file cannot be removed.
        """
        remove_partials(self._folder / JOURNAL, self._folder / SHARDS, start=self._prefix)
        for path in journal_files(self._folder, self._prefix):
            try:
                notes = read_journal(path).notes
            except StoreError:  # a power cut; its batch counts as not done
                remove(path)
                continue
            if notes.index[0] in sealed:
                remove(path)
            else:
                self._append(_Entry(path, path.stat().st_size, notes))

    def add(self, rows: pa.RecordBatch, notes: Notes) -> None:
        """Write a batch; it is there when this returns.

        Raises:
            StoreError: It cannot be written.
        """
        path = self._folder / JOURNAL / f"{self._prefix}{notes.index[0]:012d}.arrow"
        self._append(_Entry(path, write_journal(path, rows, notes), notes))

    def roll_if_due(self) -> None:
        """Make a shard where the journal has enough for one.

        Raises:
            StoreError: It cannot be written; the batches stay in the journal.
        """
        if self._rows >= self._rows_per_shard or self._size >= JOURNAL_BYTES:
            self.roll()

    def roll(self) -> None:
        """Move all batches of the journal into one shard.

        Raises:
            StoreError: It cannot be written; the batches stay in the journal.
        """
        if not self._entries:
            return
        entries = [self._entries[index] for index in sorted(self._entries)]
        last = max(
            (int(path.stem[len(self._prefix) :]) for path in shard_files(self._folder, self._prefix)), default=-1
        )
        path = self._folder / SHARDS / f"{self._prefix}{last + 1:06d}.parquet"
        try:
            write_shard(path, Notes.merge([entry.notes for entry in entries]), (read_journal(e.path) for e in entries))
        finally:
            if path.exists():  # also where an interrupt came just after it; moving a batch twice would double it
                self._entries, self._rows, self._size = {}, 0, 0
        for entry in entries:
            remove(entry.path)

    def release(self) -> None:
        """Let another writer take the rank."""
        self._lock.release()

    def _append(self, entry: _Entry) -> None:
        self._entries[int(entry.notes.index[0])] = entry  # in place of one whose writer was interrupted
        self._rows += int(entry.notes.rows[0])
        self._size += entry.size
