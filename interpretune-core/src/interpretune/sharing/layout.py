"""Which files a store is made of; what else lies beside them is not shared, and not accepted."""

from __future__ import annotations

import re
from pathlib import Path

from interpretune.errors import StoreError
from interpretune.store.folder import JOURNAL, MANIFEST, SHARDS, TABLES
from interpretune.store.manifest import Manifest

CARD = "README.md"
FOLDERS = (SHARDS, TABLES, JOURNAL)

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}"
_PLACE = re.compile(
    rf"{re.escape(MANIFEST)}|{re.escape(CARD)}|({SHARDS}|{TABLES})/{_NAME}\.parquet|{JOURNAL}/{_NAME}\.arrow"
)


def belongs(place: str) -> bool:
    """Whether a path, relative to a store, is that of a file of a store."""
    return _PLACE.fullmatch(place) is not None


def check_place(place: str, where: str) -> str:
    """The place, if it belongs to a store; absolute paths, ``..`` and all other files are refused (``StoreError``)."""
    if not belongs(place):
        raise StoreError(
            f"{where} holds {place[:200]!r}, which is no part of a store ({MANIFEST}, {CARD}, {SHARDS}/*.parquet, "
            f"{TABLES}/*.parquet). Nothing was taken from it; ask its author for what the analysis wrote."
        )
    return place


def files_of(manifest: Manifest) -> list[str]:
    """The files of a complete store, as its manifest names them."""
    return [MANIFEST, *manifest.files]


def only_named(manifest: Manifest, folder: Path, where: str) -> None:
    """Refuse files that the manifest of a complete store does not name (``StoreError``)."""
    more = set(places_in(folder)) - {*files_of(manifest), CARD}
    if manifest.complete and more:
        raise StoreError(
            f"{where} holds files that its manifest does not name: {', '.join(sorted(more))}. They are no part of what "
            "the analysis wrote; nothing was taken."
        )


def places_in(folder: Path) -> list[str]:
    """Files below a folder, relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
