"""What `test_hub.py` runs in a process of its own, in which the hub's client is not offline."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from interpretune import StoreError
from interpretune.sharing import HubRepository, Limits, load_store, save_store
from interpretune.store import AnalysisStore
from tests.sharing.local_hub import LocalHub, local_hub
from tests.sharing.stores import dense, written

# The hub's own client says it of itself, with this version of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture(params=["regular", "lfs"])
def hub(request: pytest.FixtureRequest) -> Iterator[LocalHub]:
    with local_hub(lfs=request.param == "lfs") as hub:
        yield hub


@pytest.fixture
def plain() -> Iterator[LocalHub]:
    with local_hub() as hub:
        yield hub


@pytest.fixture
def store(tmp_path: Path) -> AnalysisStore:
    return written(tmp_path / "source", dense(0, range(10)))


def at(hub: LocalHub, name: str = "me/run", **how: object) -> HubRepository:
    return HubRepository(name, **{"token": hub.token, "endpoint": hub.endpoint, **how})


def assert_refused(source: HubRepository, tmp_path: Path, message: str, **how: object) -> None:
    for folder in (tmp_path / "refused", None):
        with pytest.raises(StoreError, match=message):
            load_store(source, folder, cache_dir=tmp_path / "other-cache", **how)
    assert not (tmp_path / "refused").exists()
    assert not list(tmp_path.glob("other-cache/stores/*")) + list(tmp_path.glob("other-cache/stores/.*"))


def test_a_repository_gives_back_what_it_got(hub: LocalHub, store: AnalysisStore, tmp_path: Path) -> None:
    where = save_store(store, at(hub), title="A run")
    files = hub.files("me/run")
    named = [entry.file for entry in (*store.manifest.shards, *store.manifest.tables)]
    assert sorted(files) == sorted([".gitattributes", "README.md", "manifest.json", *named])
    assert b"# A run" in files["README.md"]
    assert b"path: shards/*.parquet" in files["README.md"]
    commits = list(hub.repositories["me/run"].commits)
    assert where == f"hf://datasets/me/run@{commits[-1]}"
    assert len(commits) == 2  # the empty repository, and everything at once
    for how in ({"folder": tmp_path / "copy"}, {"cache_dir": tmp_path / "cache"}):
        loaded = load_store(at(hub), **how)
        assert loaded.manifest == store.manifest
        assert loaded.folder is not None
        assert sorted(
            p.relative_to(loaded.folder).as_posix() for p in loaded.folder.rglob("*") if p.is_file()
        ) == sorted(["README.md", "manifest.json", *named])


def test_what_is_in_the_cache_is_not_fetched_again(plain: LocalHub, store: AnalysisStore, tmp_path: Path) -> None:
    save_store(store, at(plain))
    first = load_store(at(plain), cache_dir=tmp_path / "cache")
    plain.calls.clear()
    assert load_store(at(plain), cache_dir=tmp_path / "cache").folder == first.folder
    assert not [call for call in plain.calls if ".parquet" in call]


def test_a_second_save_replaces_the_store_and_nothing_else(hub: LocalHub, store: AnalysisStore, tmp_path: Path) -> None:
    address = save_store(store, at(hub))
    repository = hub.repositories["me/run"]
    repository.commit({**hub.files("me/run"), "paper.pdf": b"%PDF", "images/a.png": b"png"})
    other = written(tmp_path / "other", dense(1, range(4)), rows_per_shard=100)
    with pytest.raises(StoreError, match=r"hf://datasets/me/run has a store already.*overwrite=True"):
        save_store(other, at(hub))
    save_store(other, at(hub), overwrite=True)
    shards = {path for path in hub.files("me/run") if path.startswith("shards/")}
    assert shards == {entry.file for entry in other.manifest.shards}
    assert {"paper.pdf", "images/a.png"} <= hub.files("me/run").keys()
    assert load_store(at(hub), tmp_path / "copy").manifest == other.manifest
    old = at(hub, revision=address.rpartition("@")[2])
    assert load_store(old, tmp_path / "old").manifest == store.manifest


def test_only_what_a_manifest_names_is_fetched(plain: LocalHub, store: AnalysisStore, tmp_path: Path) -> None:
    save_store(store, at(plain))
    more = {"run.py": b"raise SystemExit", "shards/../x": b"x", "shards/more.parquet": b"x"}
    plain.repositories["me/run"].commit({**plain.files("me/run"), **more})
    loaded = load_store(at(plain), tmp_path / "copy")
    assert loaded.manifest == store.manifest
    assert not [call for call in plain.calls if "run.py" in call or "more.parquet" in call or "../x" in call]


def test_private_repositories_need_a_token(plain: LocalHub, store: AnalysisStore, tmp_path: Path) -> None:
    save_store(store, at(plain, private=True))
    assert plain.repositories["me/run"].private
    assert load_store(at(plain), tmp_path / "copy").complete
    assert_refused(at(plain, token=False), tmp_path, r"no such repository, or does not know you \(401\).*hf auth login")


def test_a_run_that_was_not_finished(plain: LocalHub, tmp_path: Path) -> None:
    half = written(tmp_path / "half", dense(0, range(10)), seal=False)
    with pytest.raises(StoreError, match="is not complete"):
        save_store(half, at(plain))
    assert plain.calls == []
    save_store(half, at(plain), allow_incomplete=True)
    assert_refused(at(plain), tmp_path, "is not complete")
    assert load_store(at(plain), tmp_path / "copy", allow_incomplete=True).batch_indices == half.batch_indices


def test_refusals_of_the_hub_come_with_a_remedy(plain: LocalHub, store: AnalysisStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"hf://datasets/me/run cannot be written.*\(401\).*token"):
        save_store(store, at(plain, token=False))
    save_store(store, at(plain))
    assert_refused(at(plain, "me/runs"), tmp_path, r"hf://datasets/me/runs cannot be read: .*\(404\).*Check owner")
    assert_refused(at(plain, revision="v9"), tmp_path, r"me/run@v9 cannot be read: there is no such revision")
    assert_refused(at(plain, "me/run", token="hf_other", revision="x/../y"), tmp_path, "cannot be read")
    with pytest.raises(StoreError, match="there is no such revision.*branches are made on the hub"):
        save_store(store, at(plain, revision="v9"), overwrite=True)
    plain.fail = 403
    with pytest.raises(StoreError, match=r"you may not do that \(403\).*write access"):
        save_store(store, at(plain), overwrite=True)
    plain.fail = 418
    assert_refused(at(plain), tmp_path, "the hub answered .*418.*Try again later")


def test_a_repository_without_a_store(plain: LocalHub, store: AnalysisStore, tmp_path: Path) -> None:
    save_store(store, at(plain))
    files = plain.files("me/run")
    plain.repositories["me/run"].commit({k: v for k, v in files.items() if k != "manifest.json"})
    assert_refused(at(plain), tmp_path, r"no store at hf://datasets/me/run@\w+: it has no manifest.json")
    missing = store.manifest.shards[1].file
    plain.repositories["me/run"].commit({k: v for k, v in files.items() if k != missing})
    assert_refused(at(plain), tmp_path, f"lacks {missing}, which its manifest names")


def test_changed_files_and_too_many_bytes(plain: LocalHub, store: AnalysisStore, tmp_path: Path) -> None:
    save_store(store, at(plain))
    assert_refused(at(plain), tmp_path, "holds more than 1,000 bytes", limits=Limits(max_bytes=1_000))
    shard = store.manifest.shards[0].file
    files = plain.files("me/run")
    plain.repositories["me/run"].commit({**files, shard: files[shard][:-1] + b"x"})
    assert_refused(at(plain), tmp_path, "is no whole store")
    plain.repositories["me/run"].commit({**files, "manifest.json": files["manifest.json"].replace(b"ablation", b"x")})
    assert_refused(at(plain), tmp_path, "checksum")


def test_a_download_that_ends_too_early(
    plain: LocalHub, store: AnalysisStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_store(store, at(plain))
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)  # between its attempts
    plain.cut = {store.manifest.shards[0].file}
    assert_refused(at(plain), tmp_path, "cannot be read")


def test_no_network(store: AnalysisStore, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nowhere = HubRepository("me/run", token="hf_x", endpoint=f"http://127.0.0.1:{port}")
    assert_refused(nowhere, tmp_path, r"the hub cannot be reached \(ConnectError.*Check the connection")
    with pytest.raises(StoreError, match="the hub cannot be reached"):
        save_store(store, nowhere)
    assert "hf_x" not in repr(nowhere)
