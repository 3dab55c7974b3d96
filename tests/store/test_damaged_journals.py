"""Journal files that are not what their writer wrote: run again, left out, and said; never read."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from interpretune.errors import StoreError
from interpretune.sharing import load_store
from interpretune.store import AnalysisStore, StoreWriter
from interpretune.store.batch_notes import METADATA
from interpretune.store.fields import check_fields
from interpretune.store.journal import MARK, _digest, parse_journal
from interpretune.store.manifest import Manifest
from interpretune.store.values import LatentValues
from tests.store.damage import DAMAGES, change_manifest
from tests.store.synthetic import (
    FIELDS,
    HOOKS,
    N_BATCHES,
    assert_whole,
    examples_of,
    interrupt,
    values_of,
    write,
    writer_of,
)

KEY = "k" * 64


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped with four batches in the journal."""
    folder = tmp_path_factory.mktemp("stopped") / "store"
    interrupt(folder, 0, 1, 2, 3)
    return folder


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "store"))


def journal_of(folder: Path, batch: int, rank: int = 0) -> Path:
    return folder / "journal" / f"r{rank:05d}-{batch:012d}.arrow"


def said(warning: warnings.WarningMessage) -> str:
    return str(warning.message)


def assert_run_again(folder: Path, *lost: int) -> None:
    """Lost batches are told, run again, and the sealed store is that of an untouched run."""
    with pytest.warns(UserWarning, match="is damaged") as told:
        writer = writer_of(folder)
    for batch in lost:
        name = journal_of(folder, batch).name
        assert any(
            name in str(item.message) and f"batch {batch} will be run again" in str(item.message) for item in told
        )
    with writer:
        assert writer.done == {0, 1, 2, 3} - set(lost)
        write(writer, *(batch for batch in range(N_BATCHES) if batch not in writer.done))
        store = writer.seal()
    store.verify()
    assert_whole(store, *range(N_BATCHES))


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_batch_is_run_again_and_said(folder: Path, kind: str) -> None:
    path = journal_of(folder, 1)
    path.write_bytes(DAMAGES[kind](path.read_bytes(), random.Random(0)))
    assert_run_again(folder, 1)


@pytest.mark.parametrize("kind", DAMAGES)
def test_no_damage_of_any_kind_is_read(stopped: Path, kind: str) -> None:
    """Several hundred places of each kind; each is refused before Arrow sees it."""
    path = journal_of(stopped, 2)
    content, fields, draw = path.read_bytes(), check_fields(FIELDS), random.Random(7)
    parse_journal(path, content, KEY, fields)
    for _ in range(300):
        with pytest.raises(StoreError, match=r"cut short, as by a power cut, or changed \(it"):
            parse_journal(path, DAMAGES[kind](content, draw), KEY, fields)


def test_swapped_batches_are_run_again(folder: Path) -> None:
    one, other = journal_of(folder, 1), journal_of(folder, 3)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert_run_again(folder, 1, 3)


def test_a_batch_under_another_number_is_none(folder: Path) -> None:
    shutil.copy(journal_of(folder, 3), journal_of(folder, 5))
    with pytest.warns(UserWarning, match="batch 5 will be run again"):
        writer = writer_of(folder)
    assert writer.done == {0, 1, 2, 3}
    writer.close()


def test_a_copy_under_another_rank_is_none(folder: Path) -> None:
    shutil.copy(journal_of(folder, 3), journal_of(folder, 3, rank=1))
    with pytest.warns(UserWarning, match=r"r00001-000000000003\.arrow is damaged"):
        writer = writer_of(folder)
    with writer:
        write(writer, 4, 5)
        assert_whole(writer.seal(), *range(N_BATCHES))


def test_a_batch_of_another_run_is_run_again(folder: Path, tmp_path: Path) -> None:
    interrupt(tmp_path / "other", 2, key="another")
    shutil.copy(journal_of(tmp_path / "other", 2), journal_of(folder, 2))
    assert_run_again(folder, 2)


def test_a_file_without_a_digest_is_run_again(folder: Path) -> None:
    """As files of an older version are."""
    path = journal_of(folder, 0)
    with pa.ipc.open_stream(path) as reader:
        rows = reader.read_all()
    with pa.ipc.new_file(path, rows.schema) as writer:
        writer.write_table(rows)
    with pytest.warns(UserWarning, match="no digest, as files of an older version"):
        writer_of(folder).close()


def test_any_reader_of_arrow_streams_opens_one(folder: Path) -> None:
    with pa.ipc.open_stream(journal_of(folder, 2)) as reader:
        assert reader.read_all().column("example").to_pylist() == examples_of(2)


@pytest.mark.parametrize("how", ["folder", "copy", "cache"])
def test_loading_leaves_a_damaged_batch_out(folder: Path, tmp_path: Path, how: str) -> None:
    path = journal_of(folder, 1)
    path.write_bytes(DAMAGES["flipped bit"](path.read_bytes(), random.Random(1)))
    with pytest.raises(StoreError, match=f"{path.name} was cut short, as by a power cut, or changed"):
        AnalysisStore.open(folder)
    target = tmp_path / "copy" if how == "copy" else None
    source = folder if how != "cache" else archive_of(folder, tmp_path)
    with pytest.warns(UserWarning, match="batch 1 will be left out") as told:
        store = load_store(source, target, cache_dir=tmp_path / "cache", allow_incomplete=True)
    assert len([item for item in told if path.name in str(item.message) and str(source) in str(item.message)]) == 1
    assert_whole(store, 0, 2, 3)
    if target is not None:
        assert_whole(AnalysisStore.open(target), 0, 2, 3)


def archive_of(folder: Path, tmp_path: Path) -> Path:
    shutil.rmtree(folder / "locks")
    return Path(shutil.make_archive(str(tmp_path / "run"), "tar", folder))


def test_verify_looks_at_shards_of_unfinished_stores(tmp_path: Path) -> None:
    with writer_of(tmp_path) as writer:
        write(writer, 0, 1, 2, 3)
    store = AnalysisStore.open(tmp_path)
    store.verify()
    shard = tmp_path / "shards" / "r00000-000001.parquet"
    shard.write_bytes(DAMAGES["zeroed page"](shard.read_bytes(), random.Random(3)))
    with pytest.raises(StoreError, match=f"{shard.name} cannot be read"):
        AnalysisStore.open(tmp_path).verify()


# ------------------------------------------------------------------------------------------------------ rolled shards


def test_shards_that_nothing_vouches_for_are_run_again(tmp_path: Path) -> None:
    """As in unfinished stores of an older version, which list their shards at the end only."""
    with writer_of(tmp_path) as writer:
        write(writer, 0, 1, 2)
    change_manifest(tmp_path, lambda found: found.update(shards=[]))
    with pytest.warns(UserWarning, match=r"r00000-00000\d.parquet is not listed in the manifest.*run again") as told:
        writer = writer_of(tmp_path)
    assert len(told) == 2
    with writer:
        assert writer.done == set()
        write(writer, *range(N_BATCHES))
        assert_whole(writer.seal(), *range(N_BATCHES))


@pytest.mark.parametrize("kind", [*DAMAGES, "missing"])
@pytest.mark.parametrize("seed", range(3))
def test_batches_of_a_damaged_shard_are_run_again(tmp_path: Path, kind: str, seed: int) -> None:
    with writer_of(tmp_path) as writer:
        write(writer, 0, 1, 2, 3)
    shard = tmp_path / "shards" / "r00000-000001.parquet"
    if kind == "missing":
        shard.unlink()
    else:
        shard.write_bytes(DAMAGES[kind](shard.read_bytes(), random.Random(seed)))
    with pytest.warns(UserWarning, match=rf"{shard.name} is damaged .*: 2 batches \(2, 3\) will be run again"):
        writer = writer_of(tmp_path)
    with writer:
        assert writer.done == {0, 1}
        write(writer, 2, 3, 4, 5)
        store = writer.seal()
    store.verify()
    assert_whole(store, *range(N_BATCHES))


@pytest.mark.parametrize("kind", ["flipped bit", "zeroed page"])
def test_a_shard_that_is_damaged_before_sealing(tmp_path: Path, kind: str) -> None:
    with writer_of(tmp_path) as writer:
        write(writer, *range(N_BATCHES))
        shard = tmp_path / "shards" / "r00000-000000.parquet"
        shard.write_bytes(DAMAGES[kind](shard.read_bytes(), random.Random(11)))
        with pytest.raises(StoreError, match=f"{shard.name} cannot be read"):
            writer.seal()
    assert not Manifest.read(tmp_path).complete


def test_a_damaged_footer_gives_no_numbers(tmp_path: Path) -> None:
    """Pages have checksums of their own and the footer has none; each value of it is covered all the same."""
    with writer_of(tmp_path) as writer:
        write(writer, *range(N_BATCHES))
        writer.seal()
    shard = tmp_path / "shards" / "r00000-000001.parquet"
    content = shard.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    draw = random.Random(5)
    for _ in range(60):
        at = len(content) - 8 - draw.randrange(1, length)
        shard.write_bytes(content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :])
        with pytest.raises(StoreError):
            list(AnalysisStore.open(tmp_path).batches())


def test_a_shard_that_changes_under_the_reader(tmp_path: Path) -> None:
    with writer_of(tmp_path) as writer:
        write(writer, *range(N_BATCHES))
        store = writer.seal()
    assert store.batch(0).index == 0
    shard = tmp_path / "shards" / "r00000-000000.parquet"
    shard.write_bytes(shard.read_bytes() + b"more")
    with pytest.raises(StoreError, match="was changed since the store was opened"):
        store.batch(1, ["loss"])


# ------------------------------------------------------------------------------------- forged, with the right digest


def forge(path: Path, change: Callable[[pa.RecordBatch], pa.RecordBatch], **options: object) -> None:
    """Another batch in a journal file, with a digest."""
    with pa.ipc.open_stream(path) as reader:
        rows = reader.read_next_batch()
    changed = change(rows)
    metadata = {**(rows.schema.metadata or {}), **(changed.schema.metadata or {})}
    changed = changed.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, changed.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(changed)
    body = sink.getvalue()
    path.write_bytes(body.to_pybytes() + MARK + _digest(body, path.name, KEY))


def with_column(rows: pa.RecordBatch, name: str, array: pa.Array) -> pa.RecordBatch:
    place = rows.schema.get_field_index(name)
    return rows.set_column(place, rows.schema.field(place).with_type(array.type), array)


def with_latents(rows: pa.RecordBatch, ids: Callable[[list[int]], list[int]]) -> pa.RecordBatch:
    lists = rows.column("latents")
    entries = lists.flatten()
    arrays = [entries.field(item.name) for item in entries.type]
    place = [item.name for item in entries.type].index("latent")
    arrays[place] = pa.array(ids(arrays[place].to_pylist()), pa.int32())
    struct = pa.StructArray.from_arrays(arrays, fields=list(entries.type))
    return with_column(rows, "latents", pa.ListArray.from_arrays(lists.offsets, struct, type=lists.type))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.slice(1), "its notes are on other rows than it has"),
        (lambda rows: rows.drop_columns(["loss"]), "its columns are"),
        (lambda rows: with_column(rows, "loss", rows.column("loss").cast(pa.float64())), "loss"),
        (lambda rows: with_column(rows, "batch", pa.array([9, 9, 9])), "rows are of other batches"),
        (lambda rows: with_column(rows, "example", pa.array([-1, 0, 1])), "it has the example -1"),
        (lambda rows: with_latents(rows, lambda ids: [64, *ids[1:]]), "names latent 64 of .*, which has 64 latents"),
        (lambda rows: with_latents(rows, lambda ids: [-1, *ids[1:]]), "names latent -1"),
        (lambda rows: rows.replace_schema_metadata({METADATA: b'{"batches": [2]'}), "notes|Expecting|delimiter"),
        (lambda rows: rows.replace_schema_metadata({METADATA: b"[" * 100_000}), "notes"),
    ],
)
def test_what_was_not_declared_so_is_damaged(
    folder: Path, change: Callable[[pa.RecordBatch], pa.RecordBatch], message: str
) -> None:
    forge(journal_of(folder, 2), change)
    with pytest.raises(StoreError, match=rf"changed \(.*({message})"):
        AnalysisStore.open(folder)
    assert_run_again(folder, 2)


def test_offsets_that_point_far_away_are_damaged(folder: Path) -> None:
    path = journal_of(folder, 2)
    body = path.read_bytes()[: -len(MARK) - 32]
    before, after = (np.array(numbers, dtype=np.int32).tobytes() for numbers in ((0, 2, 5, 9), (0, 2, 5, 2**30)))
    assert body.count(before) == 1
    body = body.replace(before, after)
    path.write_bytes(body + MARK + _digest(pa.py_buffer(body), path.name, KEY))
    assert_run_again(folder, 2)


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_batches_are_refused(folder: Path, codec: str) -> None:
    """No writer writes them, and a few bytes of them could unfold to any size."""
    forge(journal_of(folder, 2), lambda rows: rows, compression=codec)
    with pytest.raises(StoreError, match="its values are compressed"):
        AnalysisStore.open(folder)


def test_a_forged_copy_without_change_is_read(folder: Path) -> None:
    """The forger of these tests forges nothing else."""
    forge(journal_of(folder, 2), lambda rows: rows)
    assert_whole(AnalysisStore.open(folder), 0, 1, 2, 3)


def test_positions_are_not_negative(tmp_path: Path) -> None:
    with writer_of(tmp_path) as writer, pytest.raises(StoreError, match="Batch 0 needs the positions of its examples"):
        writer.write(0, [-1, 0, 1], values_of(0))


def test_wide_dictionaries_keep_their_last_latent(tmp_path: Path) -> None:
    last = LatentValues(torch.tensor([2**31 - 1]), torch.ones(3, 1), 2**31)
    values = {**values_of(0), "activations": {HOOKS[0]: last}, "effects": {HOOKS[0]: last}}
    with StoreWriter.create(tmp_path, FIELDS, {}, key="k", n_batches=1) as writer:
        writer.write(0, examples_of(0), values)
        store = writer.seal()
    assert store.batch(0)["effects"][HOOKS[0]].latents.tolist() == [2**31 - 1]
