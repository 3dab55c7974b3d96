"""Load a store that somebody shared: only what belongs to it, whole, and unchanged."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from interpretune.analysis.sharing.archive import is_archive, unpack
from interpretune.analysis.sharing.hub import HubRepository
from interpretune.analysis.sharing.layout import MANIFEST, belongs, files_of, only_named, places_in
from interpretune.analysis.sharing.limits import Limits
from interpretune.analysis.sharing.places import place_of
from interpretune.analysis.sharing.remote import RemotePlace
from interpretune.analysis.sharing.staging import move_into, partial_folder, writing
from interpretune.analysis.store import AnalysisStore
from interpretune.analysis.store.manifest import Manifest
from interpretune.cache_folder import cache_root, file_sha256
from interpretune.errors import StoreError


def load_store(
    source: str | Path | HubRepository,
    folder: str | Path | None = None,
    *,
    cache_dir: str | Path | None = None,
    limits: Limits | None = None,
    allow_incomplete: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> AnalysisStore:
    """Open a store from a folder, an archive, an address or the Hub.

    Everything but a folder of this machine is copied first. The copy is checked against the hashes in its manifest
    before it gets its name; nothing is left of one that fails. Nothing in a store is executed or unpickled.

    Args:
        source: As in ``save_store``.
        folder: Where to copy it to; None: into the cache, where the same store is kept once.
        cache_dir: The cache; None: as ``interpretune.cache_folder.cache_root`` finds it.
        limits: How much an archive may unpack to; None: the usual ``Limits()``.
        allow_incomplete: Accept a store whose run was not finished.
        storage_options: What ``fsspec`` needs to open the address.

    Raises:
        StoreError: There is no store, it is damaged or incomplete, holds what no store holds, exceeds a limit, or
            cannot be reached; or ``folder`` is taken.
    """
    place = place_of(source, storage_options)
    if isinstance(place, Path) and folder is None and not is_archive(place.name):
        return _checked(place, str(place), allow_incomplete=allow_incomplete)
    final = None if folder is None else Path(folder).expanduser()
    if final is not None and final.exists():
        raise StoreError(f"{final} is there already. Choose another place, or open it as it is.")
    cache = cache_root(cache_dir) / "stores"
    with partial_folder(final or cache / "store") as partial:
        if isinstance(place, HubRepository):
            place = place.commit()
        if isinstance(place, Path) and is_archive(place.name):
            _unpack(place, partial, limits or Limits())
        elif isinstance(place, RemotePlace) and place.archive:
            place.unpack_to(partial, limits or Limits())
        else:
            with writing(partial):
                (partial / MANIFEST).write_bytes(_manifest(place))
            with _naming(partial, str(source)):
                manifest = Manifest.read(partial)
            _check_complete(manifest.complete, str(source), allow_incomplete=allow_incomplete)
            known = _known(cache / _name(partial), allow_incomplete=False) if manifest.complete and not final else None
            if known is not None:
                return known
            _fetch(place, partial, manifest, limits or Limits())
        _checked(partial, str(source), allow_incomplete=allow_incomplete)
        if final is not None:
            move_into(partial, final, replace=False)
            return AnalysisStore.open(final)
        final = cache / _name(partial)
        known = _known(final, allow_incomplete=allow_incomplete)
        if known is not None:
            return known
        try:
            move_into(partial, final, replace=final.exists())
        except StoreError:
            if _known(final, allow_incomplete=allow_incomplete) is None:  # else another process has just put it there
                raise
    return AnalysisStore.open(final)


def _name(folder: Path) -> str:
    """Name of a store in the cache: a hash of its manifest, which has those of everything else once it is complete."""
    content = (folder / MANIFEST).read_bytes()
    if not Manifest.read(folder).complete:
        content += "".join(f"{place} {file_sha256(folder / place)}\n" for place in places_in(folder)).encode()
    return hashlib.sha256(content).hexdigest()[:32]


def _known(folder: Path, *, allow_incomplete: bool) -> AnalysisStore | None:
    """A store that is in the cache already, unless it was damaged there."""
    try:
        return _checked(folder, str(folder), allow_incomplete=allow_incomplete) if folder.is_dir() else None
    except StoreError:
        return None


def _unpack(archive: Path, folder: Path, limits: Limits) -> None:
    try:
        file = archive.open("rb")
    except OSError as error:
        raise StoreError(f"{archive} cannot be read ({error.strerror or error}). Check the path.") from error
    with file, writing(folder):
        unpack(file, folder, limits, str(archive))


def _manifest(place: Path | RemotePlace | HubRepository) -> bytes:
    if not isinstance(place, Path):
        return place.manifest()
    try:
        return (place / MANIFEST).read_bytes()
    except OSError as error:
        raise StoreError(f"There is no store at {place}: it has no {MANIFEST}. Check the path.") from error


def _fetch(place: Path | RemotePlace | HubRepository, folder: Path, manifest: Manifest, limits: Limits) -> None:
    """Copy the files that a manifest names; of a store that is not complete, those that belong to one."""
    if not isinstance(place, Path):
        place.fetch(files_of(manifest) if manifest.complete else None, folder, limits)
        return
    _checked(place, str(place), allow_incomplete=True)
    places = files_of(manifest) if manifest.complete else [name for name in places_in(place) if belongs(name)]
    with writing(folder):
        for name in places:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(place / name, folder / name)


def _checked(folder: Path, name: str, *, allow_incomplete: bool) -> AnalysisStore:
    """Open a store and compare every file with its hash; one that was just copied holds nothing else."""
    with _naming(folder, name):
        if str(folder) != name:
            only_named(Manifest.read(folder), folder, name)
        store = AnalysisStore.open(folder)
        store.verify()
    _check_complete(store.complete, name, allow_incomplete=allow_incomplete)
    return store


@contextlib.contextmanager
def _naming(folder: Path, name: str) -> Iterator[None]:
    """In errors, call a folder that is gone by then what the caller calls it."""
    try:
        yield
    except StoreError as error:
        if str(folder) == name:
            raise
        raise StoreError(f"What {name} holds is no whole store: {str(error).replace(str(folder), name)}") from error


def _check_complete(complete: bool, name: str, *, allow_incomplete: bool) -> None:
    if not complete and not allow_incomplete:
        raise StoreError(
            f"{name} is not complete: its run was not finished. Ask for the finished one, or take what is there with "
            "`allow_incomplete=True`."
        )
