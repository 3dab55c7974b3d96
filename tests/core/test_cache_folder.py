"""Cache folders are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

import interpretune as it
from interpretune.cache_folder import MANIFEST, is_whole


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


@pytest.mark.parametrize("damage", ["truncated", "missing", "no manifest", "broken manifest", "list for a manifest"])
def test_a_damaged_folder_is_rebuilt(built, damage):
    data, manifest = built / "deep" / "data.txt", built / MANIFEST
    {
        "truncated": lambda: data.write_text("who"),
        "missing": data.unlink,
        "no manifest": manifest.unlink,
        "broken manifest": lambda: manifest.write_text('{"deep/da'),
        "list for a manifest": lambda: manifest.write_text("[]"),
    }[damage]()
    assert not is_whole(built)
    it.build_once(built, fill)
    assert is_whole(built)
    assert data.read_text() == "whole content"


def test_a_file_in_the_place_of_the_folder_is_replaced(tmp_path):
    place = tmp_path / "entry"
    place.write_text("not a folder")
    assert is_whole(it.build_once(place, fill))


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

        monkeypatch.setattr("interpretune.cache_folder.tempfile.mkdtemp", refuse)
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
