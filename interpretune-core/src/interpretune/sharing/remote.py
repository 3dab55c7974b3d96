"""Where stores lie: on this machine, on the Hub, or at any address that fsspec opens, as an archive or as files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from interpretune.errors import StoreError
from interpretune.sharing.archive import Limits, is_archive, too_large, unpack
from interpretune.sharing.hub import HubRepository, is_hub_address
from interpretune.sharing.layout import CARD, belongs
from interpretune.store.folder import MANIFEST, MANIFEST_BYTES


class RemotePlace:
    """An address such as ``s3://bucket/run`` or ``memory://run.tar.gz``.

    Args:
        address: The address; with the ending of an archive it is one file, else a folder.
        storage_options: What the file system needs to be opened, such as keys.

    Raises:
        StoreError: No such file system is known or installed.
    """

    def __init__(self, address: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.address = address
        with self._reaching("opened"):
            self._fs, path = fsspec.core.url_to_fs(address, **(storage_options or {}))
        self._path = path.rstrip("/")

    @property
    def archive(self) -> bool:
        """Whether it is one file."""
        return is_archive(self._path)

    @property
    def name(self) -> str:
        """Its last part."""
        return PurePosixPath(self._path).name

    @property
    def local(self) -> Path | None:
        """The path, where the address is one of this machine."""
        return Path(self._path) if isinstance(self._fs, LocalFileSystem) else None

    def __str__(self) -> str:
        return self.address

    def exists(self) -> bool:
        """Whether a store is there."""
        with self._reaching("read"):
            return bool(self._fs.exists(self._path if self.archive else self._at(MANIFEST)))

    def put_archive(self, file: Path) -> None:
        """Write an archive."""
        with self._reaching("written"):
            self._fs.makedirs(str(PurePosixPath(self._path).parent), exist_ok=True)
            self._fs.put_file(str(file), self._path)

    def put_files(self, files: Iterable[tuple[str, Path]]) -> None:
        """Write a folder; the manifest comes last, so that a folder that was cut short is no store."""
        ordered = sorted(files, key=lambda item: (item[0] == MANIFEST, item[0]))
        with self._reaching("written"):
            if self._fs.exists(self._at(MANIFEST)):
                self._fs.rm_file(self._at(MANIFEST))
                for place in set(self._places()) - {place for place, _ in ordered}:  # *.parquet would read it as well
                    self._fs.rm_file(self._at(place))
            for folder in {str(PurePosixPath(self._at(place)).parent) for place, _ in ordered}:
                self._fs.makedirs(folder, exist_ok=True)
            for place, file in ordered:
                self._fs.put_file(str(file), self._at(place))

    def unpack_to(self, folder: Path, limits: Limits) -> None:
        """Unpack the archive into a folder, without a copy of it here."""
        with self._reaching("read"), self._fs.open(self._path, "rb") as archive:
            unpack(archive, folder, limits, self.address)

    def manifest(self) -> bytes:
        """The manifest of a folder, read on its own."""
        with self._reaching("read"), self._fs.open(self._at(MANIFEST), "rb") as file:
            content = file.read(MANIFEST_BYTES + 1)
        if len(content) > MANIFEST_BYTES:
            raise StoreError(f"The manifest of {self.address} has more than {MANIFEST_BYTES:,} bytes: it is none.")
        return bytes(content)

    def fetch(self, places: Iterable[str] | None, folder: Path, limits: Limits) -> None:
        """Copy the named files of a folder, and its card; no other file is looked at. None: what belongs to a store."""
        left = limits.max_bytes
        with self._reaching("read"):
            if places is None:
                places = self._places()
            elif self._fs.exists(self._at(CARD)):
                places = [*places, CARD]
            for place in places:
                left -= self._fs.info(self._at(place)).get("size") or 0
                if left < 0:
                    raise too_large(self.address, limits)
                target = folder / place
                target.parent.mkdir(exist_ok=True)
                self._fs.get_file(self._at(place), str(target))

    def _places(self) -> list[str]:
        """What belongs to a store there."""
        found = (str(path).removeprefix(f"{self._path}/") for path in self._fs.find(self._path))
        return [place for place in found if belongs(place)]

    def _at(self, place: str) -> str:
        return f"{self._path}/{place}"

    @contextlib.contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        """Say of any failure of a file system, each of which has errors of its own, what was tried."""
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as error:
            raise StoreError(f"There is no store at {self.address} ({error}). Check the address.") from error
        except ImportError as error:
            raise StoreError(f"{self.address} cannot be {what}: {error} Install that package.") from error
        except Exception as error:
            raise StoreError(
                f"{self.address} cannot be {what} ({type(error).__name__}: {error}). Check the address, the rights and "
                "the connection; keys and the like go into `storage_options`."
            ) from error


def place_of(
    target: str | Path | HubRepository, storage_options: Mapping[str, Any] | None = None
) -> Path | RemotePlace | HubRepository:
    """What a path, an address or a repository means; ``StoreError`` where it means nothing."""
    if isinstance(target, HubRepository):
        return target
    if isinstance(target, Path) or "://" not in target:
        return Path(target).expanduser()
    if is_hub_address(target):
        return HubRepository.parse(target)
    place = RemotePlace(target, storage_options)
    return place.local or place
