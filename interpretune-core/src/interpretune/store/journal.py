"""The journal of a writer: its last batches, a file each, until they are enough for a shard."""

from __future__ import annotations

import warnings
from operator import attrgetter
from pathlib import Path

import pyarrow as pa
from attrs import evolve, frozen
from filelock import BaseFileLock

from interpretune.errors import StoreError
from interpretune.store.declared import check_fields
from interpretune.store.disk import (
    JOURNAL,
    SHARDS,
    holding_manifest,
    rank_prefix,
    remove,
    remove_partials,
    shard_number,
)
from interpretune.store.entries import ShardEntry
from interpretune.store.journal_file import journal_files, read_journal, write_journal
from interpretune.store.manifest import Manifest
from interpretune.store.notes import Notes
from interpretune.store.pieces import write_shard

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

    A batch is first a file in ``journal/``; ``roll`` moves all files into one shard. The shard is on the disk and in
    the manifest before the first file is removed, so that whoever finds a batch in both drops the file. A shard that
    the manifest does not list was not finished; its batches are still in files.
    """

    def __init__(
        self, folder: Path, rank: int, lock: BaseFileLock, manifest: Manifest, rows_per_shard: int = ROWS_PER_SHARD
    ) -> None:
        """Take over a rank.

        Args:
            folder: The store.
            rank: The rank.
            lock: Held for it.
            manifest: Of the store.
            rows_per_shard: Rows after which the journal becomes a shard.
        """
        self._folder, self._prefix, self._lock = folder, rank_prefix(rank), lock
        self._key, self._fields = manifest.key, check_fields(manifest.fields)
        self._rows_per_shard = rows_per_shard
        self._entries: dict[int, _Entry] = {}
        self._rows = self._size = 0

    def recover(self) -> None:
        """Find what an earlier writer of the rank left; remove what it did not finish, and what was damaged since.

        Raises:
            StoreError: A file cannot be removed.
        """
        remove_partials(self._folder / JOURNAL, self._folder / SHARDS, start=self._prefix)
        shards = Manifest.read(self._folder).shards
        listed = {Path(entry.file).name for entry in shards}
        for path in shard_files(self._folder, self._prefix):
            if path.name in listed:
                continue
            if not journal_files(self._folder, self._prefix):  # a writer that was killed left its batches there
                warnings.warn(
                    f"{path} is not listed in the manifest, as in stores of an older version: its batches will be run "
                    "again.",
                    stacklevel=4,
                )
            remove(path)
        there = {index for entry in shards for index in entry.batches}
        for path in journal_files(self._folder, self._prefix):
            try:
                notes = read_journal(path, self._key, self._fields).notes
            except StoreError:  # whoever looked through the store has said so; its batch counts as not done
                remove(path)
                continue
            if notes.index[0] in there:
                remove(path)
            else:
                self._append(_Entry(path, path.stat().st_size, notes))

    def add(self, rows: pa.RecordBatch, notes: Notes) -> None:
        """Write a batch; it is there when this returns.

        Raises:
            StoreError: It cannot be written.
        """
        path = self._folder / JOURNAL / f"{self._prefix}{notes.index[0]:012d}.arrow"
        self._append(_Entry(path, write_journal(path, rows, notes, self._key), notes))

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
        notes = Notes.merge([entry.notes for entry in entries])
        last = max((shard_number(path.name) for path in shard_files(self._folder, self._prefix)), default=-1)
        number = max(
            last + 1, Manifest.read(self._folder).next_shard
        )  # read when the files were: it grows before one goes
        path = self._folder / SHARDS / f"{self._prefix}{number:06d}.parquet"
        file = f"{SHARDS}/{path.name}"
        try:
            sha256 = write_shard(path, notes, (read_journal(e.path, self._key, self._fields) for e in entries))
            self._list(ShardEntry.of(file, int(notes.rows.sum()), notes.index.tolist(), sha256))
        finally:
            if self._lists(file):  # also where an interrupt came just after it; moving a batch twice would double it
                self._entries, self._rows, self._size = {}, 0, 0
            else:
                remove(path)
        for entry in entries:
            remove(entry.path)

    def _list(self, entry: ShardEntry) -> None:
        with holding_manifest(self._folder):
            manifest = Manifest.read(self._folder)
            shards = sorted((*manifest.shards, entry), key=attrgetter("file"))
            evolve(manifest, shards=tuple(shards)).write(self._folder)

    def _lists(self, file: str) -> bool:
        return any(entry.file == file for entry in Manifest.read(self._folder).shards)

    def release(self) -> None:
        """Let another writer take the rank."""
        self._lock.release()

    def _append(self, entry: _Entry) -> None:
        self._entries[int(entry.notes.index[0])] = entry  # in place of one whose writer was interrupted
        self._rows += int(entry.notes.rows[0])
        self._size += entry.size


def shard_files(folder: Path, start: str = "") -> list[Path]:
    """Files of shards in a store, or of one rank; also those that its manifest does not list."""
    return sorted((folder / SHARDS).glob(f"{start}*.parquet"))
