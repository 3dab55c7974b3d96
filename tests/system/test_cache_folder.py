"""Cache folders are whole or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

import interpretune as it
from interpretune.system.cache_folder import MANIFEST, is_whole


def fill(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "data.txt").write_text("whole content")


def never(folder: Path) -> None:
    raise AssertionError(f"{folder} was built again")


@pytest.fixture
def built(tmp_path):
    return it.build_once(tmp_path / "cache" / "entry", fill)


def entries(folder: Path) -> set[str]:
    """What stands beside a cache entry, lock files apart."""
    return {path.name for path in folder.parent.iterdir() if path.suffix != ".lock"}


def test_a_folder_is_built_once(built):
    assert (built / "deep" / "data.txt").read_text() == "whole content"
    assert it.build_once(built, never) == built
    assert entries(built) == {"entry"}


def test_force_builds_again(built):
    it.build_once(built, lambda folder: (folder / "other.txt").write_text("new"), force=True)
    assert {path.name for path in built.iterdir()} == {"other.txt", MANIFEST}


DAMAGES = {
    "truncated": r"deep/data.txt has 3 bytes, and 13 were written",
    "same size": r"deep/data.txt has another content than was written",
    "missing": r"deep/data.txt cannot be read: No such file",
    "pipe": r"deep/data.txt has 0 bytes",
    "no manifest": r"interpretune-manifest.json cannot be read: No such file",
    "broken manifest": "is no list of files with their digests",
    "list for a manifest": "is no list of files with their digests",
    "sizes for a manifest": "is no list of files with their digests",
    "pipe for a manifest": "cannot be read: it is a named pipe, and a plain file is expected",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_rebuilt_and_said(built, damage):
    data, manifest = built / "deep" / "data.txt", built / MANIFEST
    {
        "truncated": lambda: data.write_text("who"),
        "same size": lambda: data.write_text("other content"),
        "missing": data.unlink,
        "pipe": lambda: (data.unlink(), os.mkfifo(data)),
        "no manifest": manifest.unlink,
        "broken manifest": lambda: manifest.write_text('{"deep/da'),
        "list for a manifest": lambda: manifest.write_text("[]"),
        "sizes for a manifest": lambda: manifest.write_text('{"deep/data.txt": 13}'),
        "pipe for a manifest": lambda: (manifest.unlink(), os.mkfifo(manifest)),
    }[damage]()
    assert not is_whole(built)
    with pytest.warns(UserWarning, match=rf"entry was damaged \(.*{DAMAGES[damage]}.*it is made anew"):
        it.build_once(built, fill)
    assert is_whole(built)
    assert data.read_text() == "whole content"


def test_a_file_in_the_place_of_the_folder_is_replaced(tmp_path):
    place = tmp_path / "entry"
    place.write_text("not a folder")
    with pytest.warns(UserWarning, match="was damaged .* it is made anew"):
        assert is_whole(it.build_once(place, fill))


def full_disk(folder: Path) -> None:
    (folder / "half.txt").write_text("half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "half.txt"))


def full_disk_in_a_library(folder: Path) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("build", [full_disk, full_disk_in_a_library])
def test_a_disk_that_fills_up_is_said_in_words(tmp_path, build):
    place = tmp_path / "cache" / "entry"
    with pytest.raises(it.CacheError, match=r"no room for .*entry \(No space left.*INTERPRETUNE_CACHE") as caught:
        it.build_once(place, build)
    assert caught.value.__cause__ is not None
    assert entries(place) == set()


def test_a_list_that_finds_no_room_leaves_nothing(tmp_path, monkeypatch):
    place = tmp_path / "cache" / "entry"

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def build(folder):
        fill(folder)
        monkeypatch.setattr(Path, "write_text", full)

    with pytest.raises(it.CacheError, match="no room for"):
        it.build_once(place, build)
    assert entries(place) == set()


def test_errors_of_other_files_stay_what_they_are(tmp_path):
    def build(folder):
        raise PermissionError(errno.EACCES, "Permission denied", "/source/of/the/data")

    with pytest.raises(PermissionError) as caught:
        it.build_once(tmp_path / "entry", build)
    assert not isinstance(caught.value, it.CacheError)


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt, SystemExit])
def test_whatever_stops_a_build_leaves_nothing(tmp_path, error):
    place = tmp_path / "cache" / "entry"

    def stop(folder: Path) -> None:
        fill(folder)
        raise error("stop")

    with pytest.raises(error, match="stop"):
        it.build_once(place, stop)
    assert entries(place) == set()
    assert is_whole(it.build_once(place, fill))


def test_a_failed_rebuild_keeps_the_whole_folder(built):
    with pytest.raises(AssertionError):
        it.build_once(built, never, force=True)
    assert is_whole(built)


def test_what_a_killed_process_left_is_removed_and_other_entries_are_not(tmp_path):
    for name in (".entry.abc123.partial", ".other.abc123.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half.txt").write_text("half")
    place = it.build_once(tmp_path / "entry", fill)
    assert entries(place) == {"entry", ".other.abc123.partial"}


@pytest.mark.parametrize("obstacle", ["file above", "no right to write"])
def test_a_place_that_cannot_be_written_says_what_to_set(tmp_path, monkeypatch, obstacle):
    place = tmp_path / "cache" / "entry"
    if obstacle == "file above":
        place.parent.write_text("a file")
    else:

        def refuse(**_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("interpretune.system.cache_folder.tempfile.mkdtemp", refuse)
    with pytest.raises(it.CacheError) as caught:
        it.build_once(place, fill)
    for part in (str(place.parent), "INTERPRETUNE_CACHE", "cache_dir"):
        assert part in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert it.cache_root(tmp_path / "mine") == tmp_path / "mine"
    monkeypatch.setenv("INTERPRETUNE_CACHE", str(tmp_path / "own"))
    assert it.cache_root() == tmp_path / "own"
    monkeypatch.delenv("INTERPRETUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert it.cache_root() == tmp_path / "xdg" / "interpretune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert it.cache_root() == tmp_path / ".cache" / "interpretune"
