"""Files whose digests are right and whose content is not: forged, or damaged before they were hashed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from interpretune.errors import StoreError
from interpretune.store import AnalysisStore
from interpretune.store.fields import check_fields
from interpretune.store.journal import MARK, _digest, parse_journal
from tests.store.damage import forge_digests
from tests.store.synthetic import FIELDS, N_BATCHES, interrupt, sealed, write, writer_of

EDITS, FOOTER = 80, 2500
KEY = "k" * 64
BYTES = (0, 1, 0x7F, 0xFF)


def edited(content: bytes, draw: random.Random, start: int = 0) -> bytes:
    """One to four bytes are others."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        changed[draw.randrange(start, len(changed))] = draw.choice((*BYTES, draw.randrange(256)))
    return bytes(changed)


def accepted(action: Callable[[], object]) -> bool:
    """Whether it is done; only a ``StoreError`` may keep it from that."""
    try:
        action()
    except StoreError:
        return False
    return True


def digested(body: bytes, name: str) -> bytes:
    return body + MARK + _digest(pa.py_buffer(body), name, KEY)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("journal") / "store"
    interrupt(folder, 0)
    return next((folder / "journal").glob("*.arrow"))


def test_edited_journals_are_read_or_refused(journal: Path) -> None:
    fields = check_fields(FIELDS)
    body = journal.read_bytes()[: -len(MARK) - 32]
    draw = random.Random(0)
    found = [
        accepted(lambda: parse_journal(journal, digested(edited(body, draw), journal.name), KEY, fields))
        for _ in range(EDITS)
    ]
    assert 0 < sum(found) < EDITS


@pytest.mark.parametrize(
    ("kind", "message"), [("no batch", "it has no batch"), ("wide integers", "more than 64 bits"), ("nothing", "")]
)
def test_a_stream_without_a_batch_of_the_store(journal: Path, kind: str, message: str) -> None:
    body = journal.read_bytes()[: -len(MARK) - 32]
    if kind == "no batch":
        sink = pa.BufferOutputStream()
        with pa.ipc.open_stream(body) as reader, pa.ipc.new_stream(sink, reader.schema):
            pass
        body = sink.getvalue().to_pybytes()
    elif kind == "wide integers":
        before, after = (bits.to_bytes(4, "little") + bytes(4) for bits in (64, 127))
        assert before in body
        body = body.replace(before, after)
    else:
        body = b""
    with pytest.raises(StoreError, match=rf"changed \(.*{message}"):
        parse_journal(journal, digested(body, journal.name), KEY, check_fields(FIELDS))


def read_all(folder: Path) -> None:
    store = AnalysisStore.open(folder)
    store.verify()
    list(store.batches())
    list(store.record_batches())
    list(store.latents(["effects"]))
    assert list(store.tables) == ["summary"]


@pytest.mark.parametrize("place", ["shards", "tables"])
def test_edited_parquet_files_are_read_or_refused(tmp_path: Path, place: str) -> None:
    """Half of the edits are in the footer, which no checksum of Parquet's own covers."""
    folder = tmp_path / "store"
    with writer_of(folder) as writer:
        write(writer, *range(N_BATCHES))
        writer.write_table("summary", pa.table({"a": [1, 2], "b": [["x"], ["y", "z"]]}))
        writer.seal()
    path = next((folder / place).glob("*.parquet"))
    whole = path.read_bytes()
    draw = random.Random(1)
    found = []
    for i in range(EDITS):
        path.write_bytes(edited(whole, draw, max(0, len(whole) - FOOTER) if i % 2 else 0))
        forge_digests(folder)
        found.append(accepted(lambda: read_all(folder)))
    assert 0 < sum(found) < EDITS


def test_a_shard_whose_columns_are_laid_out_otherwise(tmp_path: Path) -> None:
    """Its Arrow schema is that of the store, and the paths of its columns are others."""
    store = sealed(tmp_path)
    path = tmp_path / store.manifest.files[0]
    path.write_bytes(path.read_bytes().replace(b"\x04list", b"\x04lost"))
    forge_digests(tmp_path)
    with pytest.raises(StoreError, match=rf"{path.name} cannot be read \(it lacks the column latents\.list\.element"):
        list(AnalysisStore.open(tmp_path).batches())
