"""Load a store that somebody shared: only what belongs to it, whole, and unchanged."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from interpretune.errors import StoreError
from interpretune.sharing.archive import Limits, check_unfolded, is_archive, too_large, unpack
from interpretune.sharing.hub import HubRepository
from interpretune.sharing.layout import belongs, files_of, only_named, places_in
from interpretune.sharing.remote import RemotePlace, place_of
from interpretune.sharing.staging import copy_plain, move_into, partial_folder, writing
from interpretune.store import AnalysisStore
from interpretune.store.contents import Contents, forget_shards
from interpretune.store.folder import MANIFEST, MANIFEST_BYTES, read_refused, remove
from interpretune.store.manifest import Manifest
from interpretune.system.cache_folder import cache_root
from interpretune.system.plain_files import file_sha256, open_plain, read_plain


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
        cache_dir: The cache; None: as ``interpretune.cache_root`` finds it.
        limits: How much an archive may unpack to, and the values in it may unfold to; None: the usual ``Limits()``.
        allow_incomplete: Accept a store whose run was not finished. Files in it that were damaged are left out, and
            a warning names them.
        storage_options: What ``fsspec`` needs to open the address.

    Raises:
        StoreError: There is no store, it is damaged or incomplete, holds what no store holds, exceeds a limit, or
            cannot be reached; or ``folder`` is taken.
    """
    place, limits = place_of(source, storage_options), limits or Limits()
    if isinstance(place, Path) and folder is None and not is_archive(place.name):
        return _checked(place, str(place), limits, allow_incomplete=allow_incomplete)
    final = None if folder is None else Path(folder).expanduser()
    if final is not None and final.exists():
        raise StoreError(f"{final} is there already. Choose another place, or open it as it is.")
    cache = cache_root(cache_dir) / "stores"
    with partial_folder(final or cache / "store") as partial:
        if isinstance(place, HubRepository):
            place = place.commit()
        if isinstance(place, Path) and is_archive(place.name):
            _unpack(place, partial, limits)
        elif isinstance(place, RemotePlace) and place.archive:
            place.unpack_to(partial, limits)
        else:
            with writing(partial):
                (partial / MANIFEST).write_bytes(_manifest(place))
            with _naming(partial, str(source)):
                manifest = Manifest.read(partial)
            _check_complete(manifest.complete, str(source), allow_incomplete=allow_incomplete)
            known = _known(cache / _name(partial), limits) if manifest.complete and not final else None
            if known is not None:
                return known
            _fetch(place, partial, manifest, limits)
        if allow_incomplete:
            _leave_out_damaged(partial, str(source))
        _checked(partial, str(source), limits, allow_incomplete=allow_incomplete)
        if final is not None:
            move_into(partial, final, replace=False)
            return AnalysisStore.open(final)
        final = cache / _name(partial)
        known = _known(final, limits, allow_incomplete=allow_incomplete)
        if known is not None:
            return known
        try:
            move_into(partial, final, replace=final.exists())
        except StoreError:
            if (
                _known(final, limits, allow_incomplete=allow_incomplete) is None
            ):  # else another process has just put it there
                raise
    return AnalysisStore.open(final)


def _name(folder: Path) -> str:
    """Name of a store in the cache: a hash of its manifest, which has those of everything else once it is complete."""
    content = (folder / MANIFEST).read_bytes()
    if not Manifest.read(folder).complete:
        there = [place for place in places_in(folder) if belongs(place)]
        content += "".join(f"{place} {file_sha256(folder / place)}\n" for place in there).encode()
    return hashlib.sha256(content).hexdigest()[:32]


def _known(folder: Path, limits: Limits, *, allow_incomplete: bool = False) -> AnalysisStore | None:
    """A store that is in the cache already, unless it was damaged there."""
    try:
        return _checked(folder, str(folder), limits, allow_incomplete=allow_incomplete) if folder.is_dir() else None
    except StoreError:
        return None


def _unpack(archive: Path, folder: Path, limits: Limits) -> None:
    try:
        file = open_plain(archive)
    except OSError as error:
        raise StoreError(f"{archive} cannot be read ({error.strerror or error}). Check the path.") from error
    with file, writing(folder):
        unpack(file, folder, limits, str(archive))


def _manifest(place: Path | RemotePlace | HubRepository) -> bytes:
    if not isinstance(place, Path):
        return place.manifest()
    try:
        return read_plain(place / MANIFEST, MANIFEST_BYTES)
    except FileNotFoundError as error:
        raise StoreError(f"There is no store at {place}: it has no {MANIFEST}. Check the path.") from error
    except OSError as error:
        raise read_refused(place / MANIFEST, error) from error


def _fetch(place: Path | RemotePlace | HubRepository, folder: Path, manifest: Manifest, limits: Limits) -> None:
    """Copy the files that a manifest names; of a store that is not complete, those that belong to one."""
    if not isinstance(place, Path):
        place.fetch(files_of(manifest) if manifest.complete else None, folder, limits)
        return
    left = limits.max_bytes
    for name in files_of(manifest) if manifest.complete else [name for name in places_in(place) if belongs(name)]:
        if name != MANIFEST:
            left -= copy_plain(place / name, folder / name)
        if left < 0:
            raise too_large(str(place), limits)


def _leave_out_damaged(folder: Path, name: str) -> None:
    """Take what was damaged out of the copy of a store that is not complete, and warn of it."""
    with _naming(folder, name):
        damaged = () if Manifest.read(folder).complete else Contents.of_folder(folder, leave_out_damaged=True).damaged
        forget_shards(folder, damaged)
    for item in damaged:
        remove(item.path)
        told = f"{item}: {item.batches} will be left out."
        warnings.warn(told.replace(str(folder), name), stacklevel=3)


def _checked(folder: Path, name: str, limits: Limits, *, allow_incomplete: bool) -> AnalysisStore:
    """Open a store and compare every file with its hash; one that was just copied holds nothing else."""
    with _naming(folder, name):
        if str(folder) != name:
            only_named(Manifest.read(folder), folder, name)
        store = AnalysisStore.open(folder, leave_out_damaged=allow_incomplete)
        store.verify()
        check_unfolded(store.unfolded_bytes(), _size(folder), limits, name)
    _check_complete(store.complete, name, allow_incomplete=allow_incomplete)
    return store


def _size(folder: Path) -> int:
    """Bytes of the rows and tables of a store on the disk."""
    files = (folder / name for name in places_in(folder) if belongs(name) and name != MANIFEST)
    return sum(file.stat().st_size for file in files if file.is_file())


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
