"""The manifest: what a store holds, where it comes from, and whether it is all there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attrs import asdict, field, frozen

from interpretune.errors import StoreError
from interpretune.store.fields import Field, Per, check_fields
from interpretune.store.folder import MANIFEST, MANIFEST_BYTES, whole_file
from interpretune.store.manifest_parts import (
    ShardEntry,
    TableEntry,
    check_unlike,
    number,
    of_kind,
    parse_json,
    read_about,
    read_field,
    read_shard,
    read_table,
)
from interpretune.system.credentials import text_without_credentials, without_credentials
from interpretune.system.plain_files import read_plain

SCHEMA_VERSION = 3
"""Version of the layout that this package writes.

Version 1 had neither ragged fields of their own nor ``about``; version 2 had per-latent fields with axes as lists of
fixed size, which are refused, and is otherwise the same.
"""


def _from_1(found: dict[str, Any]) -> dict[str, Any]:
    """Raggedness stood in the dtype as ``int64[]``; what the results are of stood in ``config``; tables were loose."""
    fields = [
        {
            "name": item["name"],
            "dtype": item["dtype"].removesuffix("[]"),
            "per": item["per"],
            "shape": item["shape"],
            "ragged": item["dtype"].endswith("[]"),
            "about": "",
        }
        for item in found["fields"]
    ]
    kept = {name: value for name, value in found.items() if name not in ("config", "fields")}
    return {**kept, "schema_version": 2, "fields": fields, "about": {"config": found.get("config", {})}, "tables": []}


class _NoLongerReadError(Exception):
    """Files of an older version hold what this version cannot read."""


def _from_2(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "schema_version": 3}


MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1, 2: _from_2}
"""For each older version what makes the next version of its manifest."""


def migrate(found: dict[str, Any]) -> dict[str, Any]:
    """The same manifest in the current version; files are left as they are.

    Raises:
        KeyError: It lacks something that its version has, or is of a version that never was.
    """
    while found["schema_version"] != SCHEMA_VERSION:
        found = MIGRATIONS[found["schema_version"]](found)
    return found


FORMAT = "interpretune-store"
DISTRIBUTION = "interpretune-core"


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
        shards: Those that are there. A file that is not among them counts for nothing.
        tables: Tables that are there.
        next_shard: Number from which new shards of all ranks are counted, above those of shards that were lost.
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
    next_shard: int = 0
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
                {**asdict(item), "per": str(item.per), "about": text_without_credentials(item.about)}
                for item in self.fields
            ],
            "about": without_credentials(self.about),
            "n_batches": self.n_batches,
            "world_size": self.world_size,
            "complete": self.complete,
            "shards": [
                {
                    "file": item.file,
                    "rows": item.rows,
                    "batches": [[span.start, span.stop, span.step] for span in item.spans],
                    "sha256": item.sha256,
                }
                for item in self.shards
            ],
            "tables": [asdict(item) for item in self.tables],
            **({"next_shard": self.next_shard} if self.next_shard else {}),
        }
        try:
            written = json.dumps({**content, "checksum": checksum(content)}, sort_keys=True, indent=1) + "\n"
            read_about(json.loads(written)["about"])
        except (TypeError, ValueError, RecursionError) as error:
            raise StoreError(
                f"A store's `about` must be JSON: mappings, lists, text and finite numbers ({error})."
            ) from error
        return written

    @classmethod
    def from_json(cls, text: str, path: Path) -> Manifest:
        """Read a manifest of this version or an older one.

        Raises:
            StoreError: It is no manifest, is damaged, or is of a newer version.
        """
        try:
            found = _content(text)
            stated = number(found.get("schema_version"), "schema_version", 1)
        except ValueError as error:
            raise _damaged(path, f"it is no manifest of a store: {error}") from error
        if stated > SCHEMA_VERSION:
            core = str(found.get("core"))[:40]
            raise StoreError(
                f"{path} has schema version {stated}, and this {DISTRIBUTION} {version(DISTRIBUTION)} reads up to "
                f'{SCHEMA_VERSION}. Install the one that wrote it or a later one: pip install "{DISTRIBUTION}>={core}".'
            )
        try:
            return cls._of_content(found)
        except _NoLongerReadError as error:
            raise StoreError(f"{path} {error}") from error
        except KeyError as error:
            raise _damaged(path, f"it lacks {error}") from error
        except (StoreError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise _damaged(path, str(error) or type(error).__name__) from error

    @classmethod
    def _of_content(cls, found: dict[str, Any]) -> Manifest:
        if found.pop("checksum", None) != checksum(found):
            raise ValueError("its checksum is not that of its content")
        stated, found = found["schema_version"], migrate(found)
        lists = {name: list(enumerate(of_kind(found[name], name, list))) for name in ("fields", "shards", "tables")}
        manifest = cls(
            key=of_kind(found["key"], "key", str),
            fields=tuple(read_field(item, f"fields[{i}]") for i, item in lists["fields"]),
            about=read_about(found["about"]),
            n_batches=None if found["n_batches"] is None else number(found["n_batches"], "n_batches"),
            world_size=number(found["world_size"], "world_size", 1),
            complete=of_kind(found["complete"], "complete", bool),
            shards=tuple(read_shard(item, f"shards[{i}]") for i, item in lists["shards"]),
            tables=tuple(read_table(item, f"tables[{i}]") for i, item in lists["tables"]),
            next_shard=number(found.get("next_shard", 0), "next_shard"),
            core=of_kind(found["core"], "core", str),
        )
        check_fields(manifest.fields)
        if stated < 3 and (old := [item.name for item in manifest.fields if item.per is Per.latent and item.shape]):
            raise _NoLongerReadError(
                f"has per-latent fields with axes, {', '.join(old)}, which schema version {stated} stored as lists of "
                "fixed size; this version reads none of these. Run the analysis again."
            )
        check_unlike(manifest.files)
        there = sum(item.n_batches for item in manifest.shards)
        if manifest.complete and there != manifest.n_batches:
            raise ValueError(f"n_batches is {manifest.n_batches}, and the shards have {there} batches")
        return manifest

    @property
    def files(self) -> list[str]:
        """Files that it lists, relative to the store."""
        return [*(item.file for item in self.shards), *(item.file for item in self.tables)]

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a store.

        Raises:
            StoreError: There is none, or it cannot be used.
        """
        path = folder / MANIFEST
        try:
            text = read_plain(path, MANIFEST_BYTES).decode("utf-8")
        except FileNotFoundError as error:
            raise StoreError(f"{folder} is no store: {_lacks_manifest(folder)}") from error
        except NotADirectoryError as error:
            raise StoreError(f"{folder} is a file; a store is a folder with a {MANIFEST}.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise _damaged(path, str(error)) from error
        return cls.from_json(text, path)

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


def _content(text: str) -> dict[str, Any]:
    found = parse_json(text)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    return found


def _lacks_manifest(folder: Path) -> str:
    if not folder.exists():
        return "there is no such folder. Check the path."
    inside = sorted(str(item.parent) for depth in ("*", "*/*") for item in folder.glob(f"{depth}/{MANIFEST}"))
    hint = f" These in it are: {', '.join(inside[:5])}{' ...' * (len(inside) > 5)}." if inside else ""
    return f"it has no {MANIFEST}.{hint}"


def _damaged(path: Path, reason: str) -> StoreError:
    return StoreError(
        f"{path} was changed or cut short: {reason}. Copy it from where the store comes from, or run the analysis "
        "again into another folder."
    )
