"""Stores as tar files: written reproducibly, read with suspicion."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from interpretune.errors import StoreError
from interpretune.sharing.layout import FOLDERS, MANIFEST, check_place
from interpretune.sharing.limits import BoundedReader, Limits, Readable, too_large
from interpretune.system.plain_files import open_plain

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

    Args:
        archive: The archive's bytes.
        folder: An empty folder.
        limits: How much is written at most.
        name: The archive, in errors.

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
