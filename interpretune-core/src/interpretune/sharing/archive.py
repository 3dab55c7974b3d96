"""Stores as tar files: written reproducibly, read with suspicion, within limits."""

from __future__ import annotations

import contextlib
import gzip
import io
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Protocol

from attrs import field, frozen, validators

from interpretune.errors import StoreError
from interpretune.sharing.layout import FOLDERS, check_place
from interpretune.store.folder import MANIFEST
from interpretune.system.plain_files import open_plain

GZIP_MAGIC = b"\x1f\x8b"
HEADER_BYTES = 1 << 20
"""What one member's header may take: names are short, so more is an attempt to fill the memory."""
RATIO_FROM = 16 << 20
"""Unpacked bytes below which the ratio does not matter: the padding of a small archive compresses well."""


class Readable(Protocol):
    """Anything to read bytes from, once and forward."""

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes, none at the end."""


@frozen
class Limits:
    """What is refused as a decompression bomb.

    Attributes:
        max_bytes: Bytes of all unpacked files together, of a store that is fetched, and of all its values in memory.
        max_ratio: Unpacked bytes for each byte of the archive, and bytes of values for each byte of their files. Shards
            are compressed already: about 1 is usual for the first, up to 20 for the second.
        max_files: Number of files and folders.
    """

    max_bytes: int = field(default=64 << 30, validator=validators.gt(0))
    max_ratio: float = field(default=100.0, validator=validators.ge(1))
    max_files: int = field(default=100_000, validator=validators.gt(0))


class BoundedReader:
    """Unpacked bytes of an archive, compressed or not; raises ``StoreError`` as soon as there are too many."""

    def __init__(self, archive: Readable, limits: Limits, name: str) -> None:
        self._packed = _Counted(archive)
        self._gzip = gzip.GzipFile(fileobj=self._packed, mode="rb") if self._packed.compressed else None
        self._limits, self._name = limits, name
        self._unpacked = 0
        self._header_end: int | None = None

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes; ``size`` must be given, as nothing here reads an archive at once."""
        data = self._gzip.read(size) if self._gzip is not None else self._packed.read(size)
        self._unpacked += len(data)
        self._check()
        return data

    def expect_header(self, buffered: int) -> None:
        """From here on a header is read, until ``expect_data``; ``buffered`` bytes may be read ahead of it."""
        self._header_end = self._unpacked + HEADER_BYTES + buffered

    def expect_data(self) -> None:
        """From here on a member's content is read."""
        self._header_end = None

    def _check(self) -> None:
        limits = self._limits
        if self._header_end is not None and self._unpacked > self._header_end:
            raise StoreError(
                f"{self._name} has a header of more than {HEADER_BYTES:,} bytes: it is no store's archive."
            )
        # Headers and padding come on top of what the files hold.
        if self._unpacked > limits.max_bytes + limits.max_files * 2048:
            raise too_large(self._name, limits)
        if self._unpacked > RATIO_FROM and self._unpacked > limits.max_ratio * self._packed.count:
            raise StoreError(
                f"{self._name} unpacks to more than {limits.max_ratio:g} times its size, as a decompression bomb does. "
                "If you trust it, raise `Limits(max_ratio=...)`."
            )


def check_unfolded(unfolded: int, size: int, limits: Limits, name: str) -> None:
    """Refuse values that take far more memory than their files take on the disk (``StoreError``)."""
    if unfolded > limits.max_bytes:
        raise StoreError(
            f"The values in {name} take {unfolded:,} bytes, and {limits.max_bytes:,} are allowed. If you trust it, "
            "raise `Limits(max_bytes=...)`."
        )
    if unfolded > RATIO_FROM and unfolded > limits.max_ratio * size:
        raise StoreError(
            f"The values in {name} unfold to {unfolded:,} bytes from {size:,}, more than {limits.max_ratio:g} times as "
            "many, as a decompression bomb does. If you trust it, raise `Limits(max_ratio=...)`."
        )


def too_large(name: str, limits: Limits) -> StoreError:
    """The error for more bytes than ``limits.max_bytes``."""
    return StoreError(
        f"{name} holds more than {limits.max_bytes:,} bytes. If you trust it, raise `Limits(max_bytes=...)`."
    )


class _Counted(io.RawIOBase):
    """Counts the bytes that are read, and looks at the first two without losing them."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._ahead = source.read(len(GZIP_MAGIC))
        self.compressed = self._ahead == GZIP_MAGIC
        self.count = len(self._ahead)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        data = self._source.read(size)
        self.count += len(data)
        return data


SUFFIXES = (".tar", ".tar.gz", ".tgz")
_CHUNK = 1 << 20
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


def is_archive(name: str) -> bool:
    """Whether a file name is that of an archive."""
    return name.lower().endswith(SUFFIXES)


def pack(files: Iterable[tuple[str, Path]], file: Path, name: str) -> None:
    """Write a tar file, compressed where its name says so. The same files give the same bytes.

    Args:
        files: Places in the store, and the files.
        file: What to write.
        name: Name of the archive when it is in its place; its stem is the folder that everything is put in.
    """
    stem = name[: -len(next(suffix for suffix in SUFFIXES if name.lower().endswith(suffix)))] or "store"
    with contextlib.ExitStack() as stack:
        out: IO[bytes] = stack.enter_context(file.open("wb"))
        if not name.lower().endswith(".tar"):
            # Shards are compressed already: more effort would gain nothing.
            out = stack.enter_context(gzip.GzipFile(filename="", fileobj=out, mode="wb", compresslevel=1, mtime=0))  # type: ignore[arg-type]
        tar = stack.enter_context(tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT))
        for place, path in sorted(files, key=lambda item: (item[0] != MANIFEST, item[0])):
            info = tarfile.TarInfo(f"{stem}/{place}")
            info.size = path.stat().st_size
            with open_plain(path) as content:
                tar.addfile(info, content)


def unpack(archive: Readable, folder: Path, limits: Limits, name: str) -> None:
    """Write the files of an archive into an empty folder; only what a store is made of.

    Accepts names that begin with ``./`` and one folder around everything, as ``tar`` writes them.

    Raises:
        StoreError: The archive is damaged, cut short or larger than allowed, or holds links, devices, a name twice or
            a name that is no part of a store.
    """
    reader = BoundedReader(archive, limits, name)
    with _reading(name):
        reader.expect_header(_CHUNK)
        tar = tarfile.open(fileobj=reader, mode="r|", bufsize=_CHUNK)  # type: ignore[call-overload]  # noqa: SIM115
        seen: set[str] = set()
        root: str | None = None
        left = limits.max_bytes
        for count, member in enumerate(_members(tar, reader), start=1):
            if count > limits.max_files:  # folders as well: each header takes memory
                raise StoreError(f"{name} holds more than {limits.max_files:,} files; see `Limits(max_files=...)`.")
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                kind = _KINDS.get(member.type, "of an unknown kind")
                raise StoreError(
                    f"{name} holds {member.name[:200]!r}, which is {kind}. A store holds plain files only."
                )
            root = _root(member.name) if root is None else root
            place = _place(member.name, root, name)
            if place in seen:
                raise StoreError(f"{name} holds {place!r} twice.")
            seen.add(place)
            left -= member.size
            if left < 0:
                raise too_large(name, limits)
            if member.size < 0:
                raise StoreError(f"{name} is damaged: {place} has {member.size} bytes. Get it again.")
            _write(tar, member, folder / place, name)
        while reader.read(_CHUNK):  # the end of the compressed stream holds its checksum
            pass


def _members(tar: tarfile.TarFile, reader: BoundedReader) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        reader.expect_data()
        yield member
        reader.expect_header(_CHUNK)


def _root(name: str) -> str:
    """The folder around everything in an archive, with its slash, from the name of its first file."""
    parts = name.removeprefix("./").split("/")
    around = len(parts) == 3 or (len(parts) == 2 and parts[0] not in FOLDERS)
    return f"{parts[0]}/" if around and parts[0] not in ("", "..") else ""


def _place(name: str, root: str, archive: str) -> str:
    inner = name.removeprefix("./")
    if not inner.startswith(root):
        raise StoreError(f"{archive} holds {name[:200]!r} outside of {root[:200]!r}, and a store is one folder.")
    return check_place(inner[len(root) :], archive)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, name: str) -> None:
    content = tar.extractfile(member)
    if content is None:
        raise StoreError(f"{name} is damaged at {member.name[:200]!r}.")
    path.parent.mkdir(exist_ok=True)
    with path.open("xb") as out:
        shutil.copyfileobj(content, out, _CHUNK)
    if path.stat().st_size != member.size:
        raise StoreError(f"{name} is cut short in {member.name[:200]!r}. Get it again.")


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except EOFError as error:
        raise StoreError(f"{name} is cut short: its compressed stream ends too early. Get it again.") from error
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, ValueError, OverflowError) as error:
        raise StoreError(f"{name} is damaged, or is no tar file ({error}). Get it again.") from error
