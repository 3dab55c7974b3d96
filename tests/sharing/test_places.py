"""Folders and addresses: whole or absent, and only what belongs to a store."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import fsspec
import pytest

from interpretune import StoreError
from interpretune.sharing import Limits, load_store, loading, save_store
from interpretune.sharing.archive import is_archive
from interpretune.store import AnalysisStore
from tests.sharing.stores import dense, store_of, written

_numbers = itertools.count()


@pytest.fixture
def store(tmp_path: Path) -> AnalysisStore:
    return written(tmp_path / "source", dense(0, range(10)))


@pytest.fixture
def memory() -> str:
    """An address in memory that no other test uses."""
    return f"memory://interpretune-{next(_numbers)}"


def assert_same(loaded: AnalysisStore, store: AnalysisStore) -> None:
    assert loaded.complete
    assert loaded.manifest == store.manifest
    loaded.verify()
    for one, other in zip(loaded.record_batches(), store.record_batches(), strict=True):
        assert one.equals(other)


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# -------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_gets_what_the_manifest_names_and_a_card(store: AnalysisStore, tmp_path: Path) -> None:
    assert store.folder is not None
    (store.folder / "notes.txt").write_text("mine")
    where = save_store(store.folder, tmp_path / "deep" / "out")
    assert where == str(tmp_path / "deep" / "out")
    named = [entry.file for entry in (*store.manifest.shards, *store.manifest.tables)]
    assert files_in(tmp_path / "deep" / "out") == sorted(["README.md", "manifest.json", *named])
    loaded = load_store(where)
    assert loaded.folder == tmp_path / "deep" / "out"
    assert_same(loaded, store)
    assert_same(load_store(where, tmp_path / "copy"), store)
    assert_same(load_store(f"file://{where}"), store)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_a_store_in_memory_is_saved_as_a_complete_one(tmp_path: Path) -> None:
    results = dense(0, range(8))
    inner = store_of(results, 3)
    save_store(inner, tmp_path / "out")
    loaded = load_store(tmp_path / "out")
    assert loaded.complete
    for one, other in zip(loaded.batches(), inner.batches(), strict=True):
        assert one.examples.tolist() == other.examples.tolist()
        assert one["logit_diffs"].equal(other["logit_diffs"])
        assert one["answer"] == other["answer"]
        for hook, values in one["effects"].items():
            assert values.values.equal(other["effects"][hook].values)
            assert values.latents.equal(other["effects"][hook].latents)


def test_what_is_there_is_not_replaced_unless_asked_and_never_if_it_is_no_store(
    store: AnalysisStore, tmp_path: Path
) -> None:
    other = written(tmp_path / "other", dense(1, range(4)))
    for name in ("out", "out.tar"):
        save_store(other, tmp_path / name)
        with pytest.raises(StoreError, match=r"out.* is there already.*overwrite=True"):
            save_store(store, tmp_path / name)
        assert_same(load_store(tmp_path / name, cache_dir=tmp_path / "cache"), other)
        save_store(store, tmp_path / name, overwrite=True)
        assert_same(load_store(tmp_path / name, cache_dir=tmp_path / "cache"), store)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="is there already"):
        save_store(store, mine, overwrite=True)
    with pytest.raises(StoreError, match="is there already"):
        load_store(tmp_path / "out.tar", mine)
    assert files_in(mine) == ["thesis.tex"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_store_is_not_saved_into_itself(store: AnalysisStore) -> None:
    assert store.folder is not None
    before = files_in(store.folder)
    for target in (store.folder, store.folder / "copy", store.folder / "shards"):
        with pytest.raises(StoreError, match="lies in the store that is saved"):
            save_store(store, target, overwrite=True)
    assert files_in(store.folder) == before


def test_a_run_that_was_not_finished_is_shared_only_when_both_sides_say_so(tmp_path: Path, memory: str) -> None:
    half = written(tmp_path / "half", dense(0, range(10)), seal=False)
    for target in (tmp_path / "out", tmp_path / "out.tar.gz", f"{memory}/run", f"{memory}/run.tar"):
        with pytest.raises(StoreError, match=r"half is not complete.*allow_incomplete=True"):
            save_store(half, target)
        save_store(half, target, allow_incomplete=True)
        with pytest.raises(StoreError, match=r"out|run.* is not complete"):
            load_store(target, cache_dir=tmp_path / "cache")
        loaded = load_store(target, cache_dir=tmp_path / "cache", allow_incomplete=True)
        assert loaded.batch_indices == half.batch_indices
        copied = load_store(target, tmp_path / f"copy-{Path(str(target)).name}", allow_incomplete=True)
        assert copied.n_examples == 10


def test_a_damaged_store_is_neither_saved_nor_loaded(store: AnalysisStore, tmp_path: Path) -> None:
    assert store.folder is not None
    shard = next((store.folder / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-9])
    for attempt in (
        lambda: save_store(store, tmp_path / "out"),
        lambda: load_store(tmp_path / "source"),
        lambda: load_store(tmp_path / "source", tmp_path / "out"),
    ):
        with pytest.raises(StoreError):
            attempt()
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_place_that_cannot_be_written_is_named(store: AnalysisStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    save_store(store, tmp_path / "run.tar")
    for attempt in (
        lambda: save_store(store, tmp_path / "file" / "out"),
        lambda: save_store(store, tmp_path / "file" / "out.tar"),
        lambda: load_store(tmp_path / "run.tar", tmp_path / "file" / "out"),
    ):
        with pytest.raises(StoreError, match=r"file/out(\.tar)? cannot be written .*choose a place"):
            attempt()


def test_a_full_disk_leaves_nothing(store: AnalysisStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_store(store, tmp_path / "run.tar")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    monkeypatch.setattr("tarfile.copyfileobj", full)
    monkeypatch.setattr("shutil.copyfileobj", full)
    for attempt in (
        lambda: save_store(store, tmp_path / "out"),
        lambda: save_store(store, tmp_path / "out.tar"),
        lambda: load_store(tmp_path / "run.tar", tmp_path / "out"),
    ):
        with pytest.raises(StoreError, match="No space left on device"):
            attempt()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.tar", "source"]


@pytest.mark.parametrize("source", ["nothing", "nothing.tar", "memory://nothing/here", "memory://nothing/here.tar"])
def test_what_is_not_there_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=r"nothing.*([Cc]heck the (path|address)|is no store)"):
        load_store(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize("name", ["run", "deep/run", "run.tar", "run.tar.gz"])
def test_an_address_gives_back_what_it_got(store: AnalysisStore, tmp_path: Path, memory: str, name: str) -> None:
    address = f"{memory}/{name}"
    assert save_store(store, address) == address
    assert_same(load_store(address, tmp_path / "copy"), store)
    assert (tmp_path / "copy" / "README.md").is_file()
    first, second = (load_store(address, cache_dir=tmp_path / "cache") for _ in range(2))
    assert first.folder == second.folder is not None
    assert_same(first, store)
    with pytest.raises(StoreError, match="is there already"):
        save_store(store, address)
    other = written(tmp_path / "other", dense(1, range(4)))
    save_store(other, address, overwrite=True)
    assert_same(load_store(address, cache_dir=tmp_path / "cache"), other)
    assert_same(first, store)


def test_only_the_files_that_a_manifest_names_are_fetched(store: AnalysisStore, tmp_path: Path, memory: str) -> None:
    save_store(store, f"{memory}/run")
    files = fsspec.filesystem("memory")
    path = f"{memory.removeprefix('memory:/')}/run"
    files.pipe_file(f"{path}/shards/evil.parquet", b"x")
    files.pipe_file(f"{path}/code.py", b"raise SystemExit")
    assert_same(load_store(f"{memory}/run", tmp_path / "copy"), store)
    assert "code.py" not in files_in(tmp_path / "copy")
    shard = store.manifest.shards[0].file
    files.pipe_file(f"{path}/{shard}", files.cat_file(f"{path}/{shard}")[:-1])
    with pytest.raises(StoreError, match=r"memory://.* is no whole store"):
        load_store(f"{memory}/run", tmp_path / "again")
    files.rm_file(f"{path}/{shard}")
    with pytest.raises(StoreError, match=r"no store at memory://"):
        load_store(f"{memory}/run", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_folder_at_an_address_has_no_manifest_until_it_is_whole(
    store: AnalysisStore, tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fsspec.filesystem("memory")
    put = type(files).put_file

    def fails_at_the_second_shard(self: object, source: str, target: str, **how: object) -> None:
        if target.endswith(store.manifest.shards[1].file):
            raise ConnectionResetError("gone")
        put(self, source, target, **how)

    other = written(tmp_path / "other", dense(1, range(4)))
    save_store(other, f"{memory}/run")
    with monkeypatch.context() as patch:
        patch.setattr(type(files), "put_file", fails_at_the_second_shard)
        for name, overwrite in (("new", False), ("run", True)):
            with pytest.raises(StoreError, match=r"cannot be written \(ConnectionResetError: gone\)"):
                save_store(store, f"{memory}/{name}", overwrite=overwrite)
            with pytest.raises(StoreError, match="no store at"):
                load_store(f"{memory}/{name}", tmp_path / "copy")
    save_store(store, f"{memory}/new")
    assert_same(load_store(f"{memory}/new", tmp_path / "copy"), store)


def test_no_file_of_a_replaced_store_stays_where_others_would_read_it(
    store: AnalysisStore, tmp_path: Path, memory: str
) -> None:
    save_store(store, f"{memory}/run")
    files = fsspec.filesystem("memory")
    path = f"{memory.removeprefix('memory:/')}/run"
    files.pipe_file(f"{path}/paper.pdf", b"%PDF")
    other = written(tmp_path / "other", dense(1, range(4)), rows_per_shard=100)
    save_store(other, f"{memory}/run", overwrite=True)
    named = [entry.file for entry in (*other.manifest.shards, *other.manifest.tables)]
    found = {name.removeprefix(f"{path}/") for name in files.find(path)}
    assert found == {"paper.pdf", "README.md", "manifest.json", *named}


def test_a_run_that_went_on_is_not_the_one_in_the_cache(tmp_path: Path, memory: str) -> None:
    early, late = (written(tmp_path / f"{n}", dense(0, range(n)), seal=False) for n in (4, 7))
    for source in (tmp_path / "out.tar", f"{memory}/run"):
        for half in (early, late):
            save_store(half, source, allow_incomplete=True, overwrite=True)
            loaded = load_store(source, cache_dir=tmp_path / "cache", allow_incomplete=True)
            assert loaded.n_examples == half.n_examples


def test_a_copy_that_another_process_has_just_put_there_is_used(
    store: AnalysisStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_store(store, tmp_path / "run.tar")
    move = loading.move_into

    def second(partial: Path, place: Path, *, replace: bool) -> None:
        shutil.copytree(partial, place)
        move(partial, place, replace=replace)

    monkeypatch.setattr(loading, "move_into", second)
    assert_same(load_store(tmp_path / "run.tar", cache_dir=tmp_path / "cache"), store)
    assert len(list((tmp_path / "cache" / "stores").iterdir())) == 1


def test_a_store_larger_than_allowed_is_not_fetched(store: AnalysisStore, tmp_path: Path, memory: str) -> None:
    save_store(store, f"{memory}/run")
    with pytest.raises(StoreError, match=r"memory://.* holds more than 1,000 bytes.*Limits\(max_bytes"):
        load_store(f"{memory}/run", tmp_path / "copy", limits=Limits(max_bytes=1_000))
    assert not (tmp_path / "copy").exists()


def test_addresses_that_nothing_opens_are_refused(store: AnalysisStore) -> None:
    with pytest.raises(StoreError, match=r"nowhere://x cannot be opened .*Check the address"):
        save_store(store, "nowhere://x")
    with pytest.raises(StoreError, match=r"hf://models/a/b.*hf://datasets/owner/name"):
        save_store(store, "hf://models/a/b")


@pytest.mark.parametrize(("name", "archive"), [("a.tar", True), ("A.TGZ", True), ("a.zip", False), ("tar", False)])
def test_archives_are_known_by_their_names(name: str, archive: bool) -> None:
    assert is_archive(name) is archive
