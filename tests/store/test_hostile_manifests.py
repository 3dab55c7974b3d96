"""Manifests that say anything at all: refused in words, in bounded time, or read with the same numbers."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from attrs import evolve

from interpretune.analysis.cache import _urls_of
from interpretune.errors import StoreError
from interpretune.sharing import load_store
from interpretune.sharing.card import store_card
from interpretune.store import AnalysisStore, StoreWriter
from interpretune.store.manifest import Manifest, checksum
from tests.store.damage import change_manifest
from tests.store.synthetic import (
    FIELDS,
    N_BATCHES,
    assert_whole,
    examples_of,
    interrupt,
    sealed,
    values_of,
    writer_of,
)

ABOUT = {
    "seed": 0,
    "latent_models": [
        {"name": "blocks.0", "dashboard_url": None},
        {"name": "blocks.1", "dashboard_url": "https://x.y"},
    ],
    "data": {"fingerprint": "abc"},
}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 2_000_000_000, 2**31, 2**63 - 1, 2**63, 10**30, -(10**30), 10**4000),
    *(0.5, 1.0, 1e308, -0.0),
    *("", "x", "../../etc/passwd", "shards/../../x.parquet", "a/b", "a\0b", "\ud800", "é" * 300, "1", "true", "0" * 64),
    *(
        [],
        [[]],
        [None],
        [0],
        [[0, 1, 1]],
        [[0, 2_000_000_000, 1]],
        [[0, 10**30, 1]],
        [[10**30, 10**30 + 1, 1]],
        ["x", "x"],
    ),
    *({}, {"name": 1}, {"a": {"b": {}}}, nested(50), nested(900)),
)


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail, rather than hang, where something takes longer."""

    def stop(*_: Any) -> None:
        raise AssertionError(f"it takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete store with a table."""
    folder = tmp_path_factory.mktemp("store")
    with StoreWriter.create(folder, FIELDS, ABOUT, key="k", n_batches=N_BATCHES, rows_per_shard=7) as writer:
        for batch in range(N_BATCHES):
            writer.write(batch, examples_of(batch), values_of(batch))
        writer.write_table("summary", pa.table({"a": [1, 2]}))
        writer.seal()
    return folder


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every node of a manifest."""
    yield path
    if isinstance(value, dict):
        for name, item in value.items():
            yield from places(item, (*path, name))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from places(item, (*path, i))


def put(found: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    found[path[0]] = put(found[path[0]], path[1:], value)
    return found


def forged(found: Any) -> str:
    """With the right checksum, where one can be made."""
    if isinstance(found, dict):
        found.pop("checksum", None)
        with contextlib.suppress(ValueError, UnicodeEncodeError, RecursionError):
            found["checksum"] = checksum(found)
    return json.dumps(found)


def read(folder: Path, text: str) -> None:
    """Do with a manifest all that readers of a store do; only a ``StoreError`` may come of it."""
    path = folder / "manifest.json"
    before = path.read_bytes()
    path.write_text(text, encoding="utf-8")
    try:
        said = refusal(lambda: read_all(folder))
    finally:
        path.write_bytes(before)
    assert said is None or (str(folder) in said and len(said) < 1000)


def read_all(folder: Path) -> None:
    store = AnalysisStore.open(folder)
    store.verify()
    assert_whole(store, *range(N_BATCHES))
    assert store.tables["summary"].to_pydict() == {"a": [1, 2]}
    assert store_card(store)
    _urls_of(store)
    load_store(folder)


def refusal(action: Callable[[], object]) -> str | None:
    """The text of a ``StoreError``, or None."""
    try:
        action()
    except StoreError as error:
        return str(error)
    return None


def structure(manifest: Manifest) -> object:
    """What readers follow."""
    fields = [evolve(item, about="") for item in manifest.fields]
    return fields, manifest.shards, manifest.tables, manifest.complete, manifest.n_batches


def test_every_part_of_a_manifest_may_be_anything(store: Path) -> None:
    """What parses, and differs from the original in what readers follow, is read to the end."""
    text = (store / "manifest.json").read_text(encoding="utf-8")
    path, original = store / "manifest.json", Manifest.read(store)
    accepted = refused = 0
    parts = [place for place in places(json.loads(text)) if not (place[0:1] == ("fields",) and place[1:2] > (1,))]
    with at_most(100):
        for place, value in itertools.product(parts, NASTY):
            changed = forged(put(json.loads(text), place, value))
            found: list[Manifest] = []
            said = refusal(lambda changed=changed, found=found: found.append(Manifest.from_json(changed, path)))
            if said is not None:
                assert str(path) in said
                assert len(said) < 1000
                refused += 1
                continue
            accepted += 1
            if structure(found[0]) != structure(original) or accepted % 100 == 0:
                read(store, changed)
    assert accepted > 100
    assert refused > 2000


RAW: dict[str, Callable[[str], str]] = {
    "a number of 5000 digits": lambda text: text.replace('"world_size": 1', f'"world_size": 1{"0" * 5000}'),
    "infinity": lambda text: text.replace('"world_size": 1', '"world_size": Infinity'),
    "not a number": lambda text: text.replace('"seed": 0', '"seed": NaN'),
    "a large exponent": lambda text: text.replace('"seed": 0', '"seed": 1e999'),
    "deep lists": lambda text: text.replace('"seed": 0', f'"seed": {"[" * 100_000}{"]" * 100_000}'),
    "deep mappings": lambda text: text.replace('"seed": 0', '"seed": ' + '{"a":' * 50_000 + "1" + "}" * 50_000),
    "no end": lambda text: text[: len(text) // 2],
    "more behind": lambda text: text + text,
    "a byte order mark": lambda text: "\ufeff" + text,
    "a name twice": lambda text: text.replace('"world_size": 1', '"world_size": 1, "world_size": 2'),
    "nothing": lambda text: "",
    "null": lambda text: "null",
}


@pytest.mark.parametrize("name", RAW)
def test_a_text_that_is_hardly_json(store: Path, name: str) -> None:
    text = RAW[name]((store / "manifest.json").read_text(encoding="utf-8"))
    assert text != (store / "manifest.json").read_text(encoding="utf-8")
    with at_most(20), pytest.raises(StoreError, match="was changed or cut short"):
        Manifest.from_json(text, store / "manifest.json")
    with at_most(20):
        read(store, text)


def test_bytes_that_are_no_text(store: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe" + (store / "manifest.json").read_bytes())
    with pytest.raises(StoreError, match="was changed or cut short"):
        AnalysisStore.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["shards"][0].update(rows=2_000_000_000), "does not have the batches that the manifest lists"),
        (
            lambda m: m["shards"][0].update(rows=2_000_000_000, batches=[[0, 2_000_000_000, 1]]),
            "n_batches is 6, and the shards have 20000000",
        ),
        (
            lambda m: (
                m["shards"][0].update(rows=2_000_000_000, batches=[[0, 2_000_000_000, 1]]),
                m.update(n_batches=2_000_000_000 + sum(b - a for s in m["shards"][1:] for a, b, _ in s["batches"])),
            ),
            "does not have the batches that the manifest lists",
        ),
        (lambda m: m["shards"][0].update(batches=[[0, 10**30, 1]]), r"shards\[0\].batches\[0\] is 1000.*, and a whole"),
        (lambda m: m["shards"][0].update(batches=[[-3, 3, 1]]), r"batches\[0\] is -3, and a whole number from 0"),
        (lambda m: m["shards"][0].update(batches=[[0.0, 3, 1]]), r"batches\[0\] is 0.0, and a whole number from 0"),
        (lambda m: m["shards"][0].update(batches=[[True, 3, 1]]), r"batches\[0\] is True, and a whole number from 0"),
        (lambda m: m["shards"][0].update(batches=[[0, 3]]), r"is a list of 2, and a list of start, stop and step"),
        (lambda m: m["shards"][0].update(batches=[[3, 3, 1]]), "a span from 3 to 3, and a start below its stop"),
        (lambda m: m["shards"][0].update(batches=[]), r"shards\[0\].batches are 0, and 1 to 9"),
        (lambda m: m["shards"][0].update(rows=True), r"shards\[0\].rows is True, and a whole number from 1"),
        (lambda m: m["shards"][0].update(sha256="0" * 63), r"shards\[0\].sha256 is '0+', and 64 hexadecimal digits"),
        (lambda m: m["shards"].append(m["shards"][0]), "it lists shards/r00000-000000.parquet twice"),
        (lambda m: m["shards"].pop(), "n_batches is 6, and the shards have"),
        (lambda m: m["tables"].append(m["tables"][0]), "it lists tables/summary.parquet twice"),
        (lambda m: m["fields"][0].update(dtype="complex"), r"fields\[0\].dtype is 'complex', and one of float64, "),
        (lambda m: m["fields"][0].update(about=7), r"fields\[0\].about is 7, and text is expected"),
        (lambda m: m["fields"][0].update(ragged="no"), r"fields\[0\].ragged is 'no', and true or false is expected"),
        (lambda m: m["fields"][0].update(name="a/b"), r"fields\[0\].name is 'a/b', and an identifier is expected"),
        (lambda m: m["fields"].append(m["fields"][0]), "it is declared twice"),
        (lambda m: m.update(about="words"), "about is 'words', and a mapping is expected"),
        (lambda m: m.update(about={"latent_models": 7}), "about.latent_models is 7, and a list is expected"),
        (lambda m: m.update(about={"latent_models": [7]}), r"about.latent_models\[0\] is 7, and a mapping is expected"),
        (lambda m: m.update(about={"latent_models": [{}]}), r"about.latent_models\[0\].name is None, and text"),
        (
            lambda m: m.update(about={"latent_models": [{"name": "x", "dashboard_url": 7}]}),
            r"about.latent_models\[0\].dashboard_url is 7, and text is expected",
        ),
        (lambda m: m.update(about={"a": nested(200)}), "about is nested more than 64 deep"),
        (lambda m: m.update(world_size=0), "world_size is 0, and a whole number from 1"),
        (lambda m: m.update(complete=1), "complete is 1, and true or false is expected"),
        (lambda m: m.update(key=None), "key is None, and text is expected"),
        (lambda m: m.pop("tables"), "it lacks 'tables'"),
    ],
)
def test_what_a_manifest_must_not_say(
    store: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    """The message names the manifest or file, the part, what was found and what is expected."""
    folder = Path(shutil.copytree(store, tmp_path / "copy"))
    change_manifest(folder, change)
    with at_most(20), pytest.raises(StoreError, match=message):
        AnalysisStore.open(folder)


def test_unfinished_stores_with_batches_without_end(tmp_path: Path) -> None:
    interrupt(tmp_path, 0, 1)
    change_manifest(tmp_path, lambda found: found.update(n_batches=2**62))
    with at_most(20):
        assert_whole(AnalysisStore.open(tmp_path), 0, 1)
        with pytest.raises(StoreError, match="is of a run of 4611686018427387904 batches"):
            writer_of(tmp_path)


def test_writers_refuse_what_readers_do(tmp_path: Path) -> None:
    for about in ({"a": nested(200)}, {"latent_models": 7}):
        with pytest.raises(StoreError, match="`about` must be JSON"):
            StoreWriter.create(tmp_path / "store", FIELDS, about, key="k", n_batches=1)
    assert not (tmp_path / "store").exists()
    assert sealed(tmp_path / "other").complete
