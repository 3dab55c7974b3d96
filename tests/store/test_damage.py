"""Stores that were tampered with, cut short, or come from another version."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interpretune.errors import StoreError
from interpretune.store import SCHEMA_VERSION, AnalysisStore
from tests.store.damage import change_manifest
from tests.store.synthetic import FIELDS, N_BATCHES, assert_whole, interrupt, sealed, write, writer_of


def shard_of(folder: Path) -> Path:
    return sorted((folder / "shards").glob("*.parquet"))[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete store."""
    sealed(tmp_path / "store")
    return tmp_path / "store"


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"is no store: it has no manifest\.json"):
        AnalysisStore.open(tmp_path)
    with pytest.raises(StoreError, match="is no store: there is no such folder"):
        AnalysisStore.open(tmp_path / "absent")


def test_a_folder_of_stores_names_them_and_a_file_is_none(folder: Path, tmp_path: Path) -> None:
    stores = tmp_path / "run" / "analyses"
    shutil.copytree(folder, stores / "store")
    for above in (stores, stores.parent):
        with pytest.raises(StoreError, match=f"These in it are: {stores / 'store'}."):
            AnalysisStore.open(above)
    with pytest.raises(StoreError, match="is a file; a store is a folder"):
        AnalysisStore.open(folder / "manifest.json")


@pytest.mark.parametrize("name", ["key", "n_batches", "about", "complete"])
def test_a_changed_value(folder: Path, name: str) -> None:
    change_manifest(folder, lambda found: found.update({name: None}), forge=False)
    with pytest.raises(StoreError, match="was changed or cut short: its checksum is not that of its content"):
        AnalysisStore.open(folder)


@pytest.mark.parametrize("length", [0, 1, 100, -2])
def test_a_manifest_that_was_cut_short(folder: Path, length: int) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(StoreError, match="was changed or cut short: it is no manifest of a store"):
        AnalysisStore.open(folder)


@pytest.mark.parametrize("content", ["[]", "7", '{"format": "other", "schema_version": 2}', "[" * 100_000, "{}"])
def test_a_manifest_of_something_else(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(StoreError, match="it is no manifest of a store"):
        AnalysisStore.open(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["shards"][0].update(file="shards/../../outside.parquet"),
        lambda found: found["shards"][0].update(file="/etc/passwd"),
        lambda found: found["shards"][0].update(file="shards/a/b.parquet"),
        lambda found: found["shards"][0].update(rows=-1),
        lambda found: found["shards"][0].update(batches=[[0, 10**15, 1]]),
        lambda found: found["shards"][0].update(batches=[[0, 10, 0]]),
        lambda found: found["fields"][0].update(name="a/b"),
        lambda found: found["fields"][0].update(dtype="complex"),
        lambda found: found["fields"][0].update(shape=7),
        lambda found: found["fields"][0].update(unknown=1),
        lambda found: found.update(n_batches="all"),
        lambda found: found.pop("world_size"),
        lambda found: found.update(schema_version=0),
        lambda found: found.update(schema_version=True),
        lambda found: found.update(schema_version="2"),
    ],
)
def test_a_forged_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    change_manifest(folder, change)
    with pytest.raises(StoreError, match=r"was changed or cut short|is no name for a file of a store"):
        AnalysisStore.open(folder)


def test_a_newer_version(folder: Path) -> None:
    change_manifest(folder, lambda found: found.update(schema_version=SCHEMA_VERSION + 1, core="9.1.0", shards="new"))
    with pytest.raises(
        StoreError, match=r'schema version 4, .* reads up to 3\. .*pip install "interpretune-core>=9\.1\.0"'
    ):
        AnalysisStore.open(folder)


def to_version_1(folder: Path) -> None:
    """Write the manifest as it was in version 1; files were the same."""

    def change(found: dict[str, Any]) -> None:
        for item in found["fields"]:
            item["dtype"] += "[]" * item.pop("ragged")
            del item["about"]
        found.update(schema_version=1, config=found.pop("about"))
        del found["tables"]

    change_manifest(folder, change)


def test_version_1_opens(folder: Path) -> None:
    to_version_1(folder)
    store = AnalysisStore.open(folder)
    assert_whole(store, *range(N_BATCHES))
    store.verify()
    assert store.manifest.about == {"config": {"seed": 0}}
    assert [(item.name, item.dtype, item.ragged) for item in store.fields.values()] == [
        (item.name, item.dtype, item.ragged) for item in FIELDS
    ]


def test_version_2_opens_but_for_per_latent_fields_with_axes(folder: Path) -> None:
    change_manifest(folder, lambda found: found.update(schema_version=2))
    assert_whole(AnalysisStore.open(folder), *range(N_BATCHES))

    def with_axes(found: dict[str, Any]) -> None:
        next(item for item in found["fields"] if item["per"] == "latent").update(shape=["answers"])

    change_manifest(folder, with_axes)
    with pytest.raises(
        StoreError, match=r"manifest\.json has per-latent fields with axes, activations, .* Run the analysis again"
    ):
        AnalysisStore.open(folder)


def test_a_run_of_version_1_goes_on(tmp_path: Path) -> None:
    with writer_of(tmp_path) as writer:
        write(writer, 0, 1, 2)
    to_version_1(tmp_path)
    with writer_of(tmp_path) as writer:
        write(writer, 3, 4, 5)
        writer.seal()
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["schema_version"] == SCHEMA_VERSION
    assert_whole(AnalysisStore.open(tmp_path), *range(N_BATCHES))


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Another table under the name of a shard, with its notes."""
    table = pq.read_table(path, partitioning=None)
    changed = change(table)
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda notes: notes["widths"].popitem(), "its notes lack the width of"),
        (lambda notes: notes["layouts"][0]["hooks"].popitem(), "its notes are on other fields than it has"),
        (lambda notes: notes["layouts"][0].update(numbers=["effects"]), "its notes are on other fields than it has"),
        (lambda notes: notes["batches"].pop(), "its notes on batches contradict each other"),
        (lambda notes: notes["layout"].__setitem__(0, 9), "its notes on batches contradict each other"),
        (lambda notes: notes["rows"].__setitem__(0, 2**80), "its notes on batches are damaged"),
        (lambda notes: notes["rows"].reverse() or notes["rows"].__setitem__(0, 2), "not those of its batches"),
        (lambda notes: notes.clear(), "its notes on batches are damaged"),
    ],
)
def test_a_shard_whose_notes_are_wrong(folder: Path, change: Callable[[Any], Any], message: str) -> None:
    table = pq.read_table(shard_of(folder), partitioning=None)
    notes = json.loads(table.schema.metadata[b"interpretune"])
    change(notes)
    metadata = {**table.schema.metadata, b"interpretune": json.dumps(notes).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), shard_of(folder))
    with pytest.raises(StoreError, match=rf"cannot be read \(.*{message}"):
        AnalysisStore.open(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["loss"]), "its columns are .*, and .*loss.* are declared"),
        (lambda table: table.append_column("more", table["loss"]), "its columns are .*more"),
        (lambda table: table.set_column(1, "batch", table["batch"].cast("int32")), "example and batch are not int64"),
        (lambda table: table.drop_columns(["latents"]), "its columns are"),
        (
            lambda table: table.set_column(2, "logit_diffs", table["logit_diffs"].cast("float64")),
            "logit_diffs: float per example is stored as double",
        ),
        (lambda table: table.slice(1), "row groups are not those of its batches"),
        (lambda table: table.slice(0, 0), "row groups are not those of its batches|lacks rows"),
    ],
)
def test_a_shard_with_a_wrong_schema(folder: Path, change: Callable[[pa.Table], pa.Table], message: str) -> None:
    rewrite(shard_of(folder), change)
    with pytest.raises(StoreError, match=rf"cannot be read \(.*{message}"):
        AnalysisStore.open(folder)


def test_a_shard_of_another_dtype_than_the_others(tmp_path: Path) -> None:
    with writer_of(tmp_path) as writer:
        write(writer, 0, 1, 2, 3)
    path = shard_of(tmp_path)
    table = pq.read_table(path, partitioning=None)
    place = table.schema.get_field_index("logit_diffs")
    wide = table.schema.field(place).with_type(pa.float64()).with_metadata({"torch_dtype": "float64"})
    rewrite(path, lambda table: table.set_column(place, wide, table["logit_diffs"].cast("float64")))
    with pytest.raises(StoreError, match=r"keeps logit_diffs as a torch.float32 tensor \[\] and other files .*float64"):
        AnalysisStore.open(tmp_path)


def test_a_parquet_file_of_something_else(folder: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), shard_of(folder))
    with pytest.raises(StoreError, match="it has no notes on its batches"):
        AnalysisStore.open(folder)


@pytest.mark.parametrize("length", [0, 10, -10])
def test_a_shard_that_was_cut_short(folder: Path, length: int) -> None:
    path = shard_of(folder)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(StoreError, match=rf"{path.name} cannot be read .*Copy it from where the store comes from"):
        AnalysisStore.open(folder)


def test_a_missing_shard(folder: Path) -> None:
    shard_of(folder).unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        AnalysisStore.open(folder)


def test_the_shard_of_another_store(folder: Path, tmp_path: Path) -> None:
    with writer_of(tmp_path / "other", rows_per_shard=100) as writer:
        write(writer, *range(N_BATCHES))
    shard_of(tmp_path / "other").replace(shard_of(folder))
    with pytest.raises(StoreError, match="does not have the batches that the manifest lists"):
        AnalysisStore.open(folder)


def test_changed_bytes_are_found_when_they_are_read_and_by_verify(folder: Path) -> None:
    path = shard_of(folder)
    column = pq.read_metadata(path).row_group(0).column(2)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    store = AnalysisStore.open(folder)
    with pytest.raises(StoreError, match=rf"{path.name} cannot be read \(its content is not what the manifest lists"):
        store.verify()
    with pytest.raises(StoreError, match=f"{path.name} cannot be read"):
        list(store.batches())


def test_files_that_the_manifest_does_not_list(folder: Path) -> None:
    shard_of(folder).with_name("r00000-000099.parquet").write_bytes(shard_of(folder).read_bytes())
    store = AnalysisStore.open(folder)
    assert_whole(store, *range(N_BATCHES))
    with pytest.raises(StoreError, match="the manifest does not list it"):
        store.verify()


def test_a_journal_file_that_a_power_cut_left_empty(tmp_path: Path) -> None:
    interrupt(tmp_path, 0, 1, 2)
    path = sorted((tmp_path / "journal").glob("*.arrow"))[1]
    path.write_bytes(b"")
    with pytest.raises(StoreError, match=rf"{path.name} was cut short, as by a power cut"):
        AnalysisStore.open(tmp_path)
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged .*batch 1 will be run again"):
        writer = writer_of(tmp_path)
    with writer:
        assert writer.done == {0, 2}
        write(writer, 1, 3, 4, 5)
        assert_whole(writer.seal(), *range(N_BATCHES))


class Payload:
    """What a pickle can do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    extension = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Payload(trace)),
        "torch_dtype": "float32",
    }
    column = pq.read_schema(shard_of(folder)).get_field_index("logit_diffs")

    def poison(table: pa.Table) -> pa.Table:
        return table.set_column(column, table.schema.field(column).with_metadata(extension), table.column(column))

    rewrite(shard_of(folder), poison)
    with contextlib.suppress(StoreError), warnings.catch_warnings(action="ignore"):
        list(AnalysisStore.open(folder).batches())
    assert not trace.exists()
    pickle.loads(extension["ARROW:extension:metadata"])
    assert trace.exists()
