"""Archives from elsewhere: what is no whole store is refused by name and leaves nothing behind."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from interpretune import StoreError
from interpretune.sharing import Limits, load_store, save_store
from interpretune.sharing.archive import unpack
from interpretune.store import AnalysisStore
from tests.sharing.stores import dense, written

Member = tuple[str, bytes | Callable[[tarfile.TarInfo], None]]


@pytest.fixture
def store(tmp_path: Path) -> AnalysisStore:
    return written(tmp_path / "source", dense(0, range(10)))


def tar_of(path: Path, members: list[Member], mode: str = "w", fmt: int = tarfile.PAX_FORMAT) -> Path:
    """An archive with members of a content, or of another kind that a function makes of their header."""
    with tarfile.open(path, mode, format=fmt) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                content(info)
                tar.addfile(info)
    return path


def members_of(folder: Path, prefix: str = "") -> list[Member]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.parent.name != "locks")
    return [(prefix + path.relative_to(folder).as_posix(), path.read_bytes()) for path in files]


def kind(kind: bytes, target: str = "") -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, target

    return change


def assert_refused(archive: Path, message: str, **how: object) -> None:
    """Loading says why not, and leaves nothing behind, neither in a folder nor in the cache."""
    around = sorted(archive.parent.iterdir())
    cache = archive.parent.with_name("cache")
    for folder in (archive.parent / "new", None):
        with pytest.raises(StoreError, match=message):
            load_store(archive, folder, cache_dir=cache, **how)
    assert not list(cache.glob("stores/*")) + list(cache.glob("stores/.*"))
    assert sorted(archive.parent.iterdir()) == around


# ------------------------------------------------------------------------------------------------------------- accepted


@pytest.mark.parametrize("name", ["run.tar", "run.tar.gz", "run.tgz", "RUN.TAR.GZ"])
def test_an_archive_comes_back_as_the_store_that_it_was(store: AnalysisStore, tmp_path: Path, name: str) -> None:
    assert save_store(store, tmp_path / name) == str(tmp_path / name)
    loaded = load_store(tmp_path / name, tmp_path / "loaded")
    assert loaded.folder == tmp_path / "loaded"
    assert loaded.manifest == store.manifest
    assert store.folder is not None
    for entry in (*store.manifest.shards, *store.manifest.tables):
        assert (loaded.folder / entry.file).read_bytes() == (store.folder / entry.file).read_bytes()
    assert loaded.tables["summary"].equals(store.tables["summary"])


def test_the_same_store_gives_the_same_bytes(store: AnalysisStore, tmp_path: Path) -> None:
    for name in ("run.tar", "run.tar.gz"):
        save_store(store, tmp_path / "a" / name)
        save_store(store, tmp_path / "b" / name)
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("prefix", ["", "./", "run/", "./run/"])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_archives_that_people_make_of_a_folder_are_read(
    store: AnalysisStore, tmp_path: Path, prefix: str, mode: str
) -> None:
    assert store.folder is not None
    folders: list[Member] = [
        (prefix + name, kind(tarfile.DIRTYPE)) for name in ("", "shards", "tables") if prefix + name
    ]
    archive = tar_of(tmp_path / "run.tar", [*folders, *members_of(store.folder, prefix)], mode)
    assert load_store(archive, cache_dir=tmp_path / "cache").manifest == store.manifest


def test_the_cache_keeps_a_store_once_and_mends_it(store: AnalysisStore, tmp_path: Path) -> None:
    save_store(store, tmp_path / "a.tar")
    save_store(store, tmp_path / "b.tar.gz")
    first, second = (load_store(tmp_path / name, cache_dir=tmp_path / "cache") for name in ("a.tar", "b.tar.gz"))
    assert first.folder == second.folder is not None
    assert [path.name for path in (tmp_path / "cache" / "stores").iterdir()] == [first.folder.name]
    shard = next((first.folder / "shards").iterdir())
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert load_store(tmp_path / "a.tar", cache_dir=tmp_path / "cache").folder == first.folder
    assert shard.read_bytes() == content


# -------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/passwd", "'/etc/passwd', which is no part of a store"),
        ("../manifest.json", "which is no part of a store"),
        ("shards/../../x.parquet", "which is no part of a store"),
        ("shards/..", "which is no part of a store"),
        ("shards\\x.parquet", "which is no part of a store"),
        ("shards/.hidden.parquet", "which is no part of a store"),
        ("shards/deep/x.parquet", "which is no part of a store"),
        ("shards/x.pkl", "which is no part of a store"),
        ("shards/x\n.parquet", "which is no part of a store"),
        ("code.py", "which is no part of a store"),
        ("locks/rank-00000.lock", "which is no part of a store"),
        ("other/shards/x.parquet", "which is no part of a store"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_names_that_leave_the_folder_or_mean_nothing_are_refused(
    store: AnalysisStore, tmp_path: Path, name: str, message: str, first: bool
) -> None:
    assert store.folder is not None
    (tmp_path / "there").mkdir()
    whole, more = members_of(store.folder), (name, b"x")
    archive = tar_of(tmp_path / "there" / "run.tar", [more, *whole] if first else [*whole, more])
    outside = "|outside of '(shards|other|locks)/'" if first else ""  # the first name says what is around everything
    assert_refused(archive, message + outside)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (kind(tarfile.SYMTYPE, "/etc/passwd"), "a symbolic link"),
        (kind(tarfile.LNKTYPE, "manifest.json"), "a hard link"),
        (kind(tarfile.CHRTYPE), "a device"),
        (kind(tarfile.BLKTYPE), "a device"),
        (kind(tarfile.FIFOTYPE), "a pipe"),
        (kind(b"Z"), "of an unknown kind"),
    ],
)
def test_links_and_devices_are_refused(
    store: AnalysisStore, tmp_path: Path, change: Callable[[tarfile.TarInfo], None], word: str
) -> None:
    assert store.folder is not None
    (tmp_path / "there").mkdir()
    members = [*members_of(store.folder), ("shards/x.parquet", change)]
    assert_refused(tar_of(tmp_path / "there" / "run.tar", members), f"'shards/x.parquet', which is {word}")


def test_a_link_in_place_of_a_folder_is_refused(store: AnalysisStore, tmp_path: Path) -> None:
    assert store.folder is not None
    (tmp_path / "there").mkdir()
    (tmp_path / "outside").mkdir()
    members = [("shards", kind(tarfile.SYMTYPE, str(tmp_path / "outside"))), *members_of(store.folder)]
    assert_refused(tar_of(tmp_path / "there" / "run.tar", members), "a symbolic link")
    assert not list((tmp_path / "outside").iterdir())


def test_a_name_twice_and_a_file_too_many_are_refused(store: AnalysisStore, tmp_path: Path) -> None:
    assert store.folder is not None
    (tmp_path / "there").mkdir()
    whole = members_of(store.folder)
    for name, members, message in (
        ("twice", [*whole, whole[0]], "twice"),
        ("shard", [*whole, ("shards/more.parquet", whole[-1][1])], "the manifest does not list it|more.parquet"),
        ("journal", [*whole, ("journal/r00000-00000001.arrow", b"x")], "does not name: journal/r00000-00000001.arrow"),
        ("fewer", [item for item in whole if not item[0].startswith("tables")], "cannot be read"),
        ("nothing", [], "it has no manifest.json"),
    ):
        archive = tar_of(tmp_path / "there" / f"{name}.tar", members)
        assert_refused(archive, message)
        archive.unlink()


def test_a_changed_shard_is_refused(store: AnalysisStore, tmp_path: Path) -> None:
    assert store.folder is not None
    (tmp_path / "there").mkdir()
    changed = [
        (name, content[:100] + b"x" + content[101:] if name.startswith("shards") else content)
        for name, content in members_of(store.folder)
        if isinstance(content, bytes)
    ]
    assert_refused(tar_of(tmp_path / "there" / "run.tar", changed), "What .*run.tar holds is no whole store")


@pytest.mark.parametrize("name", ["run.tar", "run.tar.gz"])
def test_an_archive_that_was_cut_short_is_refused(store: AnalysisStore, tmp_path: Path, name: str) -> None:
    (tmp_path / "there").mkdir()
    archive = tmp_path / "there" / name
    save_store(store, archive)
    whole = archive.read_bytes()
    lengths = [0, 1, 2, 511, 513, *np.linspace(600, len(whole) * 0.8, 6).astype(int).tolist()]
    if name.endswith("gz"):
        lengths += [len(whole) - 1, len(whole) - 8]
    for length in lengths:
        archive.write_bytes(whole[:length])
        assert_refused(archive, "cut short|damaged|no whole store|no tar file|cannot be read")


@pytest.mark.parametrize("name", ["run.tar", "run.tar.gz"])
def test_a_changed_byte_is_refused_or_changes_nothing(store: AnalysisStore, tmp_path: Path, name: str) -> None:
    (tmp_path / "there").mkdir()
    archive = tmp_path / "there" / name
    save_store(store, archive)
    whole = archive.read_bytes()
    draw = np.random.default_rng(0)
    places = [*range(0, 512, 7), *draw.integers(len(whole), size=60)]
    refused = 0
    for i, place in enumerate(places):
        archive.write_bytes(whole[:place] + bytes([whole[place] ^ int(draw.integers(1, 256))]) + whole[place + 1 :])
        try:
            loaded = load_store(archive, tmp_path / f"new-{i}")
        except StoreError:
            refused += 1
            assert not (tmp_path / f"new-{i}").exists()
        else:
            assert loaded.manifest == store.manifest
    assert refused > 0


# ---------------------------------------------------------------------------------------------------------------- bombs


def test_a_decompression_bomb_is_refused_before_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    bomb = tmp_path / "there" / "run.tar.gz"
    with gzip.open(bomb, "wb") as out:
        info = tarfile.TarInfo("shards/x.parquet")
        info.size = 200 << 20
        out.write(info.tobuf())
        for _ in range(200):
            out.write(bytes(1 << 20))
    assert bomb.stat().st_size < 1 << 20
    assert_refused(bomb, r"more than 100 times its size.*Limits\(max_ratio")
    assert_refused(bomb, r"more than 1,048,576 bytes.*Limits\(max_bytes", limits=Limits(max_bytes=1 << 20))
    written = tmp_path / "written"
    written.mkdir()
    with bomb.open("rb") as file, pytest.raises(StoreError):
        unpack(file, written, Limits(), "bomb")
    assert sum(path.stat().st_size for path in written.rglob("*") if path.is_file()) < 64 << 20


def test_a_header_that_says_more_than_there_is_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    archive = tmp_path / "there" / "run.tar"
    info = tarfile.TarInfo("shards/x.parquet")
    info.size = 1 << 40
    archive.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    assert_refused(archive, "holds more than 68,719,476,736 bytes")
    assert_refused(archive, "cut short|damaged", limits=Limits(max_bytes=1 << 41))


def test_a_negative_size_is_refused(store: AnalysisStore, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    archive = tmp_path / "there" / "run.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("shards/x.parquet")
        info.pax_headers = {"size": "-1000000"}
        tar.addfile(info)
    assert_refused(archive, "damaged")


def test_folders_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    folders = [(f"f{i}", kind(tarfile.DIRTYPE)) for i in range(30)]
    archive = tar_of(tmp_path / "there" / "run.tar", folders)
    assert_refused(archive, "more than 20 files", limits=Limits(max_files=20))


@pytest.mark.parametrize("fmt", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path, fmt: int) -> None:
    (tmp_path / "there").mkdir()
    archive = tar_of(tmp_path / "there" / "run.tar", [("x" * (8 << 20), b"")], fmt=fmt)
    assert_refused(archive, "a header of more than 1,048,576 bytes")


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 50)}
    archive = tmp_path / "there" / "run.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("shards/x.parquet")
        info.pax_headers, content = sparse, b"0\n".ljust(512, b"\0")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    assert_refused(archive, "plain files only|more than .* bytes|damaged")


def test_more_files_than_allowed_are_refused(store: AnalysisStore, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    archive = tmp_path / "there" / "run.tar"
    save_store(store, archive)
    assert_refused(archive, r"holds more than 2 files; see `Limits\(max_files", limits=Limits(max_files=2))
