"""The manifest: what a store holds, where it comes from, and whether it is all there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from attrs import field, frozen

from interpretune.analysis.fields import Field
from interpretune.analysis.store.disk import MANIFEST, SHARDS, TABLES, check_name, whole_file
from interpretune.analysis.store.migrations import SCHEMA_VERSION, migrate
from interpretune.credentials import text_without_credentials, without_credentials
from interpretune.errors import StoreError

T = TypeVar("T")
FORMAT = "interpretune-store"
DISTRIBUTION = "interpretune-core"


@frozen
class ShardEntry:
    """A sealed piece of the table.

    Attributes:
        file: Relative to the store, ``shards/NAME.parquet``.
        rows: Examples.
        batches: Indices, ascending.
        sha256: Of the file, 64 hexadecimal digits.
    """

    file: str
    rows: int
    batches: tuple[int, ...]
    sha256: str


@frozen
class TableEntry:
    """A table of the whole run.

    Attributes:
        file: Relative to the store, ``tables/NAME.parquet``.
        rows: Rows.
        sha256: Of the file.
    """

    file: str
    rows: int
    sha256: str


@frozen(kw_only=True)
class Manifest:
    """What a store holds.

    Attributes:
        key: Hash of all that the results depend on; a run goes on only in a store with its own key.
        fields: What is stored of each batch, and the tables.
        about: Plan, configurations, identities, fingerprints, seeds, versions, stack: free JSON.
        n_batches: Batches of the whole run; None: as many as come.
        world_size: Processes that write.
        complete: All batches are there and listed in ``shards``.
        shards: Empty until complete.
        tables: Tables that are there, where complete.
        core: Version of interpretune-core that made it.
    """

    key: str
    fields: tuple[Field, ...]
    about: Mapping[str, Any] = field(factory=dict)
    n_batches: int | None = None
    world_size: int = 1
    complete: bool = False
    shards: tuple[ShardEntry, ...] = ()
    tables: tuple[TableEntry, ...] = ()
    core: str = field(factory=lambda: version(DISTRIBUTION))

    def to_json(self) -> str:
        """Canonical JSON with its checksum; what looks like a credential in ``about`` is left out.

        Raises:
            StoreError: ``about`` is no JSON.
        """
        content = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "core": self.core,
            "key": self.key,
            "fields": [
                {
                    "name": item.name,
                    "dtype": item.dtype,
                    "per": str(item.per),
                    "shape": list(item.shape),
                    "ragged": item.ragged,
                    "about": text_without_credentials(item.about),
                }
                for item in self.fields
            ],
            "about": without_credentials(self.about),
            "n_batches": self.n_batches,
            "world_size": self.world_size,
            "complete": self.complete,
            "shards": [
                {"file": item.file, "rows": item.rows, "batches": _spans(item.batches), "sha256": item.sha256}
                for item in self.shards
            ],
            "tables": [{"file": item.file, "rows": item.rows, "sha256": item.sha256} for item in self.tables],
        }
        try:
            return json.dumps({**content, "checksum": checksum(content)}, sort_keys=True, indent=1) + "\n"
        except (TypeError, ValueError) as error:
            raise StoreError(
                f"A store's `about` must be JSON: mappings, lists, text and finite numbers ({error})."
            ) from error

    @classmethod
    def from_json(cls, text: str, path: Path) -> Manifest:
        """Read a manifest of this version or an older one.

        Args:
            text: Content of the file.
            path: Where it comes from, for errors.

        Raises:
            StoreError: It is no manifest, is damaged, or is of a newer version.
        """
        try:
            found = json.loads(text)
            stated = _is(int, found["schema_version"]) if found["format"] == FORMAT else 0
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(path, f"it is no manifest of a store: {type(error).__name__} {error}") from error
        if not stated:
            raise _damaged(path, f"it is no manifest of a store: format {found['format']!r}")
        if stated > SCHEMA_VERSION:
            core = found.get("core")
            raise StoreError(
                f"{path} has schema version {stated}, and this {DISTRIBUTION} {version(DISTRIBUTION)} reads up to "
                f'{SCHEMA_VERSION}. Install the one that wrote it or a later one: pip install "{DISTRIBUTION}>={core}".'
            )
        if found.pop("checksum", None) != checksum(found):
            raise _damaged(path, "its checksum is not that of its content")
        try:
            found = migrate(found)
            return cls(
                key=_is(str, found["key"]),
                fields=tuple(Field(**{**item, "shape": tuple(item["shape"])}) for item in found["fields"]),
                about=_is(dict, found["about"]),
                n_batches=None if found["n_batches"] is None else _is(int, found["n_batches"]),
                world_size=_is(int, found["world_size"]),
                complete=_is(bool, found["complete"]),
                shards=tuple(_shard(item) for item in found["shards"]),
                tables=tuple(
                    TableEntry(_inside(item["file"], TABLES), _is(int, item["rows"]), _is(str, item["sha256"]))
                    for item in found["tables"]
                ),
                core=_is(str, found["core"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(path, f"{type(error).__name__} {error}") from error

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a store.

        Raises:
            StoreError: There is none, or it cannot be used.
        """
        path = folder / MANIFEST
        try:
            return cls.from_json(path.read_text(encoding="utf-8"), path)
        except FileNotFoundError as error:
            raise StoreError(f"{folder} is no store: it has no {MANIFEST}.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise _damaged(path, str(error)) from error

    def write(self, folder: Path) -> None:
        """Put it into a store, in one step.

        Raises:
            StoreError: It cannot be written, or ``about`` is no JSON.
        """
        text = self.to_json()
        with whole_file(folder / MANIFEST, durable=True) as path:
            path.write_text(text, encoding="utf-8")


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a manifest without its checksum, 64 hexadecimal digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _shard(item: Mapping[str, Any]) -> ShardEntry:
    rows = _is(int, item["rows"])
    spans = [range(start, stop, step) for start, stop, step in item["batches"]]
    if sum(map(len, spans)) > rows:  # before anything is made of what a file says
        raise ValueError(f"{item['file']} lists more batches than rows")
    batches = tuple(sorted(index for span in spans for index in span))
    return ShardEntry(_inside(item["file"], SHARDS), rows, batches, _is(str, item["sha256"]))


def _inside(file: object, folder: str) -> str:
    """A path that a manifest may list."""
    start, _, name = str(file).partition("/")
    if start != folder or not name.endswith(".parquet"):
        raise ValueError(f"{file!r} is no file of {folder}/")
    return f"{folder}/{check_name(name, 'a file of a store')}"


def _is(kind: type[T], value: Any) -> T:
    if type(value) is not kind or (isinstance(value, int) and value < 0):
        raise TypeError(f"{value!r} where {kind.__name__} is expected")
    return value


def _spans(batches: Sequence[int]) -> list[list[int]]:
    """Ascending numbers as ``[start, stop, step]``: ranks take every n-th batch."""
    spans: list[list[int]] = []
    for index in batches:
        last = spans[-1] if spans else None
        if last and last[1] - last[0] <= last[2]:  # one number so far: any step fits
            last[1], last[2] = index + 1, index - last[0]
        elif last and index == last[1] - 1 + last[2]:
            last[1] = index + 1
        else:
            spans.append([index, index + 1, 1])
    return spans


def _damaged(path: Path, reason: str) -> StoreError:
    return StoreError(
        f"{path} was changed or cut short: {reason}. Copy it from where the store comes from, or run the analysis "
        "again into another folder."
    )
