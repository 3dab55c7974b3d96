"""A file of the journal: one batch as an Arrow stream, and after it a digest of the stream and of where it belongs.

When a file is read, its digest is looked at first: bytes that its writer did not write are handed to nobody who would
follow the offsets in them. The digest counts the key of the store and the name of the file, hence rank and batch, so
that a file under another name, or of another run, is as damaged as one with a flipped bit. Arrow's readers of streams
stop before the digest.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from interpretune.errors import StoreError
from interpretune.store.disk import JOURNAL, whole_file
from interpretune.store.fields import Field
from interpretune.store.notes import METADATA, Notes
from interpretune.store.pieces import UNREADABLE, MemoryPiece
from interpretune.store.row_checks import check_rows
from interpretune.store.rows import Rows
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
    """Put a batch into a journal file, in one step.

    Args:
        path: Its place, named after rank and batch.
        rows: The batch.
        notes: Of the one batch.
        key: Of the store.

    Returns:
        Bytes of the file.

    Raises:
        StoreError: It cannot be written.
    """
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
    """What is in a journal file, or why it cannot be read.

    Raises:
        FileNotFoundError: It was moved into a shard meanwhile.
    """
    try:
        return read_plain(path)
    except FileNotFoundError:
        if path.is_symlink():
            return OSError("it is a link to nowhere")
        raise
    except OSError as error:
        return error


def parse_journal(path: Path, content: bytes | OSError, key: str, fields: Mapping[str, Field]) -> MemoryPiece:
    """The batch in a journal file, held to its digest, then to what the store declares.

    Args:
        path: Where it lies.
        content: What was read there.
        key: Of the store.
        fields: What the store declares, by name.

    Raises:
        StoreError: It is damaged, of another place, or of another run.
    """
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
