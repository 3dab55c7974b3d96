"""Pipes, sockets, devices, folders and links where files of a store are expected: an error in words, never a wait."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from interpretune.errors import StoreError
from interpretune.sharing import load_store, save_store
from interpretune.store import AnalysisStore
from interpretune.system.plain_files import file_sha256, open_plain, read_plain
from tests.store.synthetic import N_BATCHES, assert_whole, interrupt, sealed, write, writer_of
from tests.store.test_hostile_manifests import at_most


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder_there(path: Path) -> None:
    path.mkdir()


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def outside(path: Path) -> None:
    target = path.parents[2] / "outside"
    target.write_bytes(b"somebody's secrets")
    path.symlink_to(target)


KINDS = [pipe, folder_there, listening, device, dangling, to_itself, outside]
Kind = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "store"
    with writer_of(folder) as writer:
        write(writer, *range(N_BATCHES))
        writer.write_table("summary", pa.table({"a": [1]}))
        writer.seal()
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["manifest.json", "shards/r00000-000001.parquet", "tables/summary.parquet"])
def test_what_is_no_file_is_refused(whole: Path, tmp_path: Path, name: str, kind: Kind) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "a" / "store"))
    (folder / name).unlink()
    kind(folder / name)
    with at_most(20):
        for use in (use_store, load_store, lambda place: load_store(place, tmp_path / "copy"), save_elsewhere):
            with pytest.raises(StoreError) as caught:
                use(folder)
            assert Path(name).name in str(caught.value)
            assert "secrets" not in str(caught.value)
    assert not (tmp_path / "copy").exists()


def use_store(folder: Path) -> None:
    store = AnalysisStore.open(folder)
    list(store.batches())
    store.tables  # noqa: B018


def save_elsewhere(folder: Path) -> None:
    save_store(folder, folder.parent / "saved.tar")


@pytest.mark.parametrize("kind", KINDS)
def test_a_journal_file_that_is_none_is_run_again(tmp_path: Path, kind: Kind) -> None:
    folder = tmp_path / "a" / "store"
    interrupt(folder, 0, 1, 2)
    path = folder / "journal" / "r00000-000000000001.arrow"
    path.unlink()
    kind(path)
    with at_most(20):
        with pytest.raises(StoreError, match=path.name):
            AnalysisStore.open(folder)
        with pytest.warns(UserWarning, match=rf"{path.name} is damaged .*batch 1 will be left out"):
            assert_whole(load_store(folder, allow_incomplete=True), 0, 2)
        if kind is folder_there:
            with (
                pytest.warns(UserWarning, match="is damaged"),
                pytest.raises(StoreError, match=rf"{path.name} could not"),
            ):
                writer_of(folder)  # somebody's folder is not removed
            path.rmdir()
            writer = writer_of(folder)
        else:
            with pytest.warns(UserWarning, match=rf"{path.name} is damaged .*batch 1 will be run again"):
                writer = writer_of(folder)
        with writer:
            assert writer.done == {0, 2}
            write(writer, 1, 3, 4, 5)
            assert_whole(writer.seal(), *range(N_BATCHES))


@pytest.mark.parametrize("kind", [pipe, device, folder_there, dangling])
def test_an_archive_that_is_no_file(tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "a").mkdir()
    kind(tmp_path / "a" / "run.tar")
    with at_most(20), pytest.raises(StoreError, match=r"run\.tar cannot be read"):
        load_store(tmp_path / "a" / "run.tar", cache_dir=tmp_path / "cache")


def test_more_that_lies_in_a_folder_is_not_opened(whole: Path, tmp_path: Path) -> None:
    """Nor waited for: it is no part of the store."""
    folder = Path(shutil.copytree(whole, tmp_path / "store"))
    pipe(folder / "notes.txt")
    pipe(folder / "journal" / "r00000-000000000009.arrow")
    with at_most(20):
        for copy in (load_store(folder), load_store(folder, tmp_path / "copy")):
            assert_whole(copy, *range(N_BATCHES))
    assert not (tmp_path / "copy" / "notes.txt").exists()


def test_a_link_to_the_right_file_is_that_file(whole: Path, tmp_path: Path) -> None:
    """As in the cache of the hub's client."""
    folder = Path(shutil.copytree(whole, tmp_path / "store"))
    for name in ("manifest.json", "shards/r00000-000001.parquet"):
        (folder / name).replace(tmp_path / Path(name).name)
        (folder / name).symlink_to(tmp_path / Path(name).name)
    assert_whole(load_store(folder), *range(N_BATCHES))


def test_plain_files_are_opened_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with open_plain(path) as file:
        assert file.read() == b"content"
    assert file_sha256(path) == "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    assert read_plain(path, 7) == b"content"
    with pytest.raises(OSError, match="it has more than 6 bytes"):
        read_plain(path, 6)
    pipe(tmp_path / "pipe")
    with at_most(20), pytest.raises(OSError, match="it is a named pipe, and a plain file is expected"):
        open_plain(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is a folder"):
        open_plain(tmp_path)


def test_a_store_is_sealed_beside_a_pipe(tmp_path: Path) -> None:
    """What others put into the folder is left alone."""
    tmp_path.joinpath("store").mkdir()
    pipe(tmp_path / "store" / "notes.txt")
    assert sealed(tmp_path / "store").complete
