"""Save a store to where others can load it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interpretune.errors import StoreError
from interpretune.sharing.archive import is_archive, pack
from interpretune.sharing.card import store_card
from interpretune.sharing.hub import HubRepository
from interpretune.sharing.layout import CARD, belongs, files_of, places_in
from interpretune.sharing.remote import RemotePlace, place_of
from interpretune.sharing.staging import copy_plain, move_into, partial_folder, taken, writing
from interpretune.store import AnalysisStore, StoreWriter
from interpretune.store.folder import MANIFEST
from interpretune.system.credentials import without_credentials
from interpretune.system.whole_file import whole_file


def save_store(
    store: AnalysisStore | str | Path,
    target: str | Path | HubRepository,
    *,
    title: str = "",
    overwrite: bool = False,
    allow_incomplete: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> str:
    """Copy a store, with a card that says what it holds, to a folder, an archive, an address or the Hub.

    What is written appears whole or not at all; on an address that is a folder the manifest comes last.

    Args:
        store: The store, in a folder or in memory, or its folder.
        target: A folder; a file that ends in ``.tar``, ``.tar.gz`` or ``.tgz``; an address that ``fsspec`` opens, such
            as ``s3://bucket/run`` or ``memory://run.tar``; or a data set repository, as ``hf://datasets/owner/name`` or
            a ``HubRepository``.
        title: Heading of the card; empty: the name of the analysis.
        overwrite: Take the place of a store that is there.
        allow_incomplete: Share a store whose run was not finished.
        storage_options: What ``fsspec`` needs to open the address, such as keys.

    Returns:
        Where it is now; on the Hub with the commit.

    Raises:
        StoreError: The store is not complete or damaged, the target is taken, cannot be reached or cannot be written.
    """
    store = store if isinstance(store, AnalysisStore) else AnalysisStore.open(Path(store))
    place = place_of(target, storage_options)
    with tempfile.TemporaryDirectory(prefix="interpretune-") as scratch:
        folder, store = _in_folder(store, Path(scratch) / "store")
        if not store.complete and not allow_incomplete:
            raise StoreError(
                f"{folder} is not complete: its run was not finished. Finish it by starting it again, or share what is "
                "there with `allow_incomplete=True`."
            )
        store.verify()
        card = Path(scratch) / CARD
        card.write_text(store_card(store, title), encoding="utf-8")
        files = {name: folder / name for name in _shared(store, folder)}
        if without_credentials(store.manifest.about) != store.manifest.about:  # written by a version that kept them
            store.manifest.write(Path(scratch))
            files[MANIFEST] = Path(scratch) / MANIFEST
        if isinstance(place, HubRepository):
            message = f"Results: {store.n_examples:,} examples"
            return place.put(files.items(), card.read_text(encoding="utf-8"), message, replace=overwrite)
        files[CARD] = card
        if isinstance(place, RemotePlace):
            return _save_remote(files, place, Path(scratch), overwrite=overwrite)
        return _save_local(files, place, folder, overwrite=overwrite)


def _in_folder(store: AnalysisStore, scratch: Path) -> tuple[Path, AnalysisStore]:
    """A store with files: itself, or what a store in memory holds."""
    if store.folder is not None:
        return store.folder, store
    manifest = store.manifest
    with StoreWriter.create(
        scratch, manifest.fields, manifest.about, key=manifest.key or "in memory", n_batches=store.n_batches
    ) as writer:
        for batch in store.batches():
            writer.write(batch.index, batch.examples.tolist(), batch)
        for name, table in store.tables.items():
            writer.write_table(name, table)
        return scratch, writer.seal()


def _shared(store: AnalysisStore, folder: Path) -> list[str]:
    if store.complete:
        return files_of(store.manifest)
    return [place for place in places_in(folder) if belongs(place) and place != CARD]


def _save_local(files: Mapping[str, Path], place: Path, source: Path, *, overwrite: bool) -> str:
    if is_archive(place.name):
        if place.exists() and not (overwrite and place.is_file()):
            raise taken(place)
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(place) as partial:
                pack(files.items(), partial, place.name)
        return str(place)
    inside = place.resolve()
    if inside == source.resolve() or source.resolve() in inside.parents:
        raise StoreError(f"{place} lies in the store that is saved. Choose another place.")
    there = place.exists() and (not place.is_dir() or any(place.iterdir()))
    if there and not (overwrite and (place / MANIFEST).is_file()):
        raise taken(place)
    with partial_folder(place) as partial:
        for name, file in files.items():
            copy_plain(file, partial / name)
        move_into(partial, place, replace=overwrite)
    return str(place)


def _save_remote(files: Mapping[str, Path], place: RemotePlace, scratch: Path, *, overwrite: bool) -> str:
    if not overwrite and place.exists():
        raise taken(place.address)
    if place.archive:
        file = scratch / "archive"
        with writing(file):
            pack(files.items(), file, place.name)
        place.put_archive(file)
    else:
        place.put_files(files.items())
    return place.address
