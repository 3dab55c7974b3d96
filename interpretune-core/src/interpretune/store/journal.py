"""The journal of a writer: its last batches, a file each, until they are enough for a shard.

A file holds one batch as an Arrow stream, and after it a digest of the stream and of where it belongs.
When it is read, the digest is looked at first: bytes that its writer did not write are handed to nobody who would
follow the offsets in them. The digest counts the key of the store and the name of the file, hence rank and batch, so
that a file under another name, or of another run, is as damaged as one with a flipped bit. Arrow's readers of streams
stop before the digest.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import struct
import warnings
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path

import pyarrow as pa
from attrs import evolve, frozen
from filelock import BaseFileLock

from interpretune.errors import StoreError
from interpretune.store.batch_notes import METADATA, Notes
from interpretune.store.fields import Field, check_fields
from interpretune.store.folder import (
    JOURNAL,
    SHARDS,
    holding_manifest,
    rank_prefix,
    remove,
    remove_partials,
    shard_number,
    whole_file,
)
from interpretune.store.manifest import Manifest
from interpretune.store.manifest_parts import ShardEntry
from interpretune.store.rows import Rows, check_rows
from interpretune.store.shards import UNREADABLE, MemoryPiece, write_shard
from interpretune.system.plain_files import read_plain

MARK = b"interpretune journal 1\n"
"""Stands between the stream and the digest."""
_TRAILER = len(MARK) + hashlib.sha256().digest_size
_NAME = re.compile(r"r(\d{5})-(\d{12})\.arrow")
_RECORD_BATCH, _DICTIONARY_BATCH = 3, 2


def journal_files(folder: Path, start: str = "") -> list[Path]:
    """Journal files of a store, or of one rank."""
    return sorted((folder / JOURNAL).glob(f"{start}*.arrow"))


def write_journal(path: Path, rows: pa.RecordBatch, notes: Notes, key: str) -> int:
    """Put a batch into a journal file, named after rank and batch, in one step; returns the bytes of the file."""
    sink = pa.BufferOutputStream()
    schema = rows.schema.with_metadata({METADATA: notes.to_json()})
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(rows.replace_schema_metadata(schema.metadata))
    body = sink.getvalue()
    content = b"".join((memoryview(body), MARK, _digest(body, path.name, key)))
    with whole_file(path) as partial:
        partial.write_bytes(content)
    return len(content)


def read_journal(path: Path, key: str, fields: Mapping[str, Field]) -> MemoryPiece:
    """The batch in a journal file, see ``parse_journal``.

    Raises:
        FileNotFoundError: It was moved into a shard meanwhile.
        StoreError: It is damaged.
    """
    return parse_journal(path, read_bytes(path), key, fields)


def read_bytes(path: Path) -> bytes | OSError:
    """What is in a journal file, or why it cannot be read; ``FileNotFoundError`` if it was moved into a shard."""
    try:
        return read_plain(path)
    except FileNotFoundError:
        if path.is_symlink():
            return OSError("it is a link to nowhere")
        raise
    except OSError as error:
        return error


def parse_journal(path: Path, content: bytes | OSError, key: str, fields: Mapping[str, Field]) -> MemoryPiece:
    """The batch in a journal file, held to its digest, then to what the store declares."""
    try:
        body, index = _body(path.name, content, key)
        return _batch(path.name, body, index, fields)
    except (*UNREADABLE, struct.error) as error:
        raise _damaged(path, str(error)) from error


def _body(name: str, content: bytes | OSError, key: str) -> tuple[memoryview, int]:
    """The stream in a file whose digest is right, and the index of its batch."""
    if isinstance(content, OSError):
        raise content
    named = _NAME.fullmatch(name)
    if named is None:
        raise ValueError("its name is not that of a journal file")
    body = memoryview(content)[:-_TRAILER]
    if content[-_TRAILER:] != MARK + _digest(body, name, key):
        raise ValueError(_why(content))
    return body, int(named[2])


def _batch(name: str, body: memoryview, index: int, fields: Mapping[str, Field]) -> MemoryPiece:
    buffer = pa.py_buffer(body)
    for message in pa.ipc.MessageReader.open_stream(buffer):
        if _compressed(message):  # as no writer writes them: a few bytes could unfold to any size
            raise ValueError("its values are compressed")
    with pa.ipc.open_stream(buffer) as reader:
        batches = list(itertools.islice(reader, 2))
    if len(batches) != 1:
        raise ValueError("it has no batch" if not batches else "it has more than one batch")
    (rows,) = batches
    rows.validate(full=True)
    notes = Notes.of_metadata(rows.schema.metadata)
    if notes.index.tolist() != [index] or notes.rows.tolist() != [rows.num_rows]:
        raise ValueError("its notes are on other rows than it has")
    declared = Rows.of_arrow(fields, rows.schema).schema
    if not rows.schema.equals(declared):
        raise ValueError("its columns are not those that are declared")
    check_rows(rows, notes.index, notes.rows, notes.widths)
    return MemoryPiece(name, rows, notes)


def _digest(body: memoryview | pa.Buffer, name: str, key: str) -> bytes:
    about = f"{len(key)} {key} {name}\n".encode()
    digest = hashlib.sha256(MARK + about)
    digest.update(body)
    return digest.digest()


def _why(content: bytes) -> str:
    if content[-_TRAILER:].startswith(MARK):
        return "its digest is not that of its content, its name and the store's key"
    if content.startswith(b"ARROW1"):
        return "it has no digest, as files of an older version have none"
    return "it does not end with a digest"


def _compressed(message: pa.ipc.Message) -> bool:
    """Whether the header of a message, a FlatBuffers table, says that its buffers are compressed."""
    data = message.metadata.to_pybytes()
    (root,) = struct.unpack_from("<I", data)
    kind_at, header_at = _field(data, root, 1), _field(data, root, 2)
    if kind_at is None or header_at is None:
        return False
    table = header_at + struct.unpack_from("<I", data, header_at)[0]
    if data[kind_at] == _DICTIONARY_BATCH:
        inner = _field(data, table, 1)
        if inner is None:
            return False
        table = inner + struct.unpack_from("<I", data, inner)[0]
    elif data[kind_at] != _RECORD_BATCH:
        return False
    return _field(data, table, 3) is not None


def _field(data: bytes, table: int, number: int) -> int | None:
    """Where a field of a FlatBuffers table lies; None: it is left out."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (size,) = struct.unpack_from("<H", data, vtable)
    at = 4 + 2 * number
    offset = struct.unpack_from("<H", data, vtable + at)[0] if at < size else 0
    return table + offset if offset else None


def _damaged(path: Path, reason: str) -> StoreError:
    reason = " ".join(reason.split())
    return StoreError(
        f"{path} was cut short, as by a power cut, or changed ({reason}). Start the same run again: it computes that "
        "batch anew."
    )


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
        """Take over a rank."""
        self._folder, self._prefix, self._lock = folder, rank_prefix(rank), lock
        self._key, self._fields = manifest.key, check_fields(manifest.fields)
        self._rows_per_shard = rows_per_shard
        self._entries: dict[int, _Entry] = {}
        self._rows = self._size = 0

    def recover(self) -> None:
        """Find what an earlier writer of the rank left; remove what it did not finish, and what was damaged since."""
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
        """Write a batch; it is there when this returns."""
        path = self._folder / JOURNAL / f"{self._prefix}{notes.index[0]:012d}.arrow"
        self._append(_Entry(path, write_journal(path, rows, notes, self._key), notes))

    def roll_if_due(self) -> None:
        """Make a shard where the journal has enough for one."""
        if self._rows >= self._rows_per_shard or self._size >= JOURNAL_BYTES:
            self.roll()

    def roll(self) -> None:
        """Move all batches of the journal into one shard; after a ``StoreError`` they stay where they are."""
        if not self._entries:
            return
        entries = [self._entries[index] for index in sorted(self._entries)]
        notes = Notes.merge([entry.notes for entry in entries])
        last = max((shard_number(path.name) for path in shard_files(self._folder, self._prefix)), default=-1)
        # read after the files are listed: it grows before one of them goes
        number = max(last + 1, Manifest.read(self._folder).next_shard)
        path = self._folder / SHARDS / f"{self._prefix}{number:06d}.parquet"
        file = f"{SHARDS}/{path.name}"
        try:
            sha256 = write_shard(path, notes, (read_journal(e.path, self._key, self._fields) for e in entries))
            self._list(ShardEntry.of(file, int(notes.rows.sum()), notes.index.tolist(), sha256))
        finally:
            # also where an interrupt came just after it was listed; moving a batch twice would double it
            if any(entry.file == file for entry in Manifest.read(self._folder).shards):
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
