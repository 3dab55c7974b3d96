"""Opens and hashes files that may come from elsewhere: plain files only, so that a pipe or a device blocks nobody."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

_CHUNK = 1 << 20
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file, or a link to one, to read its bytes.

    Raises:
        OSError: It is a pipe, a device, a socket or a folder, or cannot be opened. Nothing waits for another process.
    """
    _check_plain(path.stat(), path)  # some devices do something when they are opened
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_plain(os.fstat(descriptor), path)  # it may have become another meanwhile
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_plain(path: Path, most: int | None = None) -> bytes:
    """All bytes of a plain file, which may have ``most`` (``OSError``)."""
    with open_plain(path) as file:
        content = file.read() if most is None else file.read(most + 1)
    if most is not None and len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return content


def file_sha256(path: Path) -> str:
    """SHA-256 of a plain file (else ``OSError``), 64 hexadecimal digits."""
    with open_plain(path) as file:
        return stream_sha256(file)


def stream_sha256(file: BinaryIO) -> str:
    """SHA-256 of what is left of an open file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _check_plain(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, and a plain file is expected", str(path))
