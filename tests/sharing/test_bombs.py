"""Small archives whose values would fill the memory: refused before any of them is read."""

from __future__ import annotations

import json
import resource
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from interpretune.errors import StoreError
from interpretune.sharing import Limits, load_store
from interpretune.store import AnalysisStore, StoreWriter
from interpretune.store.batch_notes import METADATA
from interpretune.store.fields import Field
from tests.store.damage import change_manifest, forge_digests

ROWS = 4_000_000
"""Their two columns of positions alone take 64 MB."""
FIELDS = (Field("answer", "string"), Field("words", "string", ragged=True), Field("numbers", "int64", ragged=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of one batch of two rows."""
    values = {
        "answer": ["a", "b"],
        "words": [["a"], ["b", "c"]],
        "numbers": [pa_tensor(1), pa_tensor(2)],
    }
    with StoreWriter.create(tmp_path / "store", FIELDS, {}, key="k", n_batches=1) as writer:
        writer.write(0, [0, 1], values)
        writer.write_table("summary", pa.table({"a": [1, 2]}))
        writer.seal()
    return tmp_path / "store"


def pa_tensor(n: int) -> torch.Tensor:
    return torch.arange(n)


def shard_of(folder: Path) -> Path:
    return folder / "shards" / "r00000-000000.parquet"


def forge(folder: Path, table: pa.Table, rows: int) -> Path:
    """A store whose only shard is this table, which its manifest and notes agree with, as an archive."""
    path = shard_of(folder)
    notes = json.loads(pq.read_schema(path).metadata[METADATA])
    notes["rows"] = [rows]
    schema = pq.read_schema(path).with_metadata({METADATA: json.dumps(notes).encode()})
    kept = pa.Table.from_arrays(
        [table.column(name).cast(schema.field(name).type) for name in schema.names], schema=schema
    )
    pq.write_table(kept, path, compression="zstd", row_group_size=rows)
    change_manifest(folder, lambda found: found["shards"][0].update(rows=rows))
    forge_digests(folder)
    archive = folder.parent / "run.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("manifest.json", "shards", "tables"):
            tar.add(folder / name, name)
    assert archive.stat().st_size < 100_000
    return archive


def repeated(array: pa.Array, times: int) -> pa.Array:
    return array.take(pa.array(np.zeros(times, dtype=np.int32)))


def bomb_of_rows(folder: Path) -> Path:
    small = pq.read_table(shard_of(folder), partitioning=None)
    columns = {name: repeated(small.column(name).combine_chunks(), ROWS) for name in ("answer",)}
    zeros = pa.array(np.zeros(ROWS, dtype=np.int64))
    empty = np.zeros(ROWS + 1, dtype=np.int32)
    columns |= {"example": zeros, "batch": zeros}
    for name in ("words", "numbers"):
        kind = small.schema.field(name).type
        none = pa.array([], kind.value_type)
        columns[name] = pa.ListArray.from_arrays(pa.array(empty), none, type=kind)
    return forge(folder, pa.table(columns), ROWS)


def bomb_of_a_list(folder: Path) -> Path:
    """Two rows, one of them with a list of as many numbers."""
    small = pq.read_table(shard_of(folder), partitioning=None)
    zeros = pa.array(np.zeros(ROWS, dtype=np.int64))
    kind = small.schema.field("numbers").type
    lists = pa.ListArray.from_arrays(pa.array([0, 0, ROWS], pa.int32()), zeros, type=kind)
    return forge(folder, small.set_column(small.schema.get_field_index("numbers"), "numbers", lists), 2)


def bomb_of_a_table(folder: Path) -> Path:
    path = folder / "tables" / "summary.parquet"
    pq.write_table(pa.table({"a": pa.array(np.zeros(ROWS, dtype=np.int64))}), path, compression="zstd")
    change_manifest(folder, lambda found: found["tables"][0].update(rows=ROWS))
    return forge(folder, pq.read_table(shard_of(folder), partitioning=None), 2)


@pytest.mark.parametrize("bomb", [bomb_of_rows, bomb_of_a_list, bomb_of_a_table])
def test_values_that_unfold_are_refused(folder: Path, tmp_path: Path, bomb: object) -> None:
    assert callable(bomb)
    archive = bomb(folder)
    before = pa.total_allocated_bytes()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for source in (archive, folder):
        with pytest.raises(StoreError, match=r"unfold to [\d,]+ bytes from [\d,]+, more than 100 times as many"):
            load_store(source, cache_dir=tmp_path / "cache")
        with pytest.raises(StoreError, match=r"take [\d,]+ bytes, and 1,000,000 are allowed"):
            load_store(source, cache_dir=tmp_path / "cache", limits=Limits(max_bytes=1_000_000, max_ratio=1e9))
    assert not list((tmp_path / "cache" / "stores").iterdir())
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 16 << 10 if sys.platform == "linux" else True


def test_who_trusts_a_store_says_so(folder: Path, tmp_path: Path) -> None:
    store = load_store(bomb_of_a_list(folder), tmp_path / "copy", limits=Limits(max_ratio=1e9))
    assert store.n_examples == 2


@pytest.mark.parametrize("name", ["answer", "words"])
def test_a_long_text_that_is_repeated_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    """Its dictionary has it once; what it unfolds to is known only when the codes are read."""
    rows = 4_000
    small = pq.read_table(shard_of(folder), partitioning=None)
    columns = {item: repeated(small.column(item).combine_chunks(), rows) for item in small.column_names}
    columns |= {"example": pa.array(range(rows)), "batch": pa.array([0] * rows)}
    long = "x" * 100_000
    codes = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([long]))
    columns[name] = codes.cast(pa.string())
    if name == "words":
        offsets = pa.array(np.arange(rows + 1, dtype=np.int32))
        columns[name] = pa.ListArray.from_arrays(offsets, columns[name])
    store = load_store(forge(folder, pa.table(columns), rows), tmp_path / "copy")
    before = pa.total_allocated_bytes()
    with pytest.raises(StoreError, match=r"its texts unfold from [\d,]+ to 400,000,000 bytes"):
        list(store.batches([name]))
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert len(next(iter(store.batches(["numbers"])))["numbers"]) == rows


def test_repeated_texts_of_usual_size_are_read(tmp_path: Path) -> None:
    text = "a prompt that all rows share " * 100
    with StoreWriter.create(tmp_path, FIELDS[:2], {}, key="k", n_batches=4, rows_per_shard=500) as writer:
        for batch in range(4):
            examples = range(batch * 500, batch * 500 + 500)
            writer.write(batch, examples, {"answer": [text] * 500, "words": [[text, "b"]] * 500})
        writer.seal()
    for batch in load_store(tmp_path).batches():
        assert batch["answer"] == [text] * 500
        assert batch["words"] == [[text, "b"]] * 500


def test_row_groups_that_are_not_of_its_batches(folder: Path) -> None:
    """As many rows as the manifest says, in groups that the notes do not have."""
    path = shard_of(folder)
    table = pq.read_table(path, partitioning=None)
    pq.write_table(table, path, row_group_size=1)
    forge_digests(folder)
    with pytest.raises(StoreError, match="its row groups are not those of its batches"):
        AnalysisStore.open(folder)
