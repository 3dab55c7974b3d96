"""Files of a store with digests: taken while they are written, and compared before their values are used."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

from interpretune.system.plain_files import open_plain, stream_sha256


class CheckedFile:
    """Opens a file for its values once its digest was found right; the bytes are hashed once, not at each opening.

    Attributes:
        path: The file.
        sha256: What its content must have, 64 hexadecimal digits.
    """

    def __init__(self, path: Path, sha256: str) -> None:
        self.path, self.sha256 = path, sha256
        self._state: tuple[int, ...] | None = None
        self._right = False

    def peek(self) -> BinaryIO:
        """Open it to see what it says it has, before anything was hashed.

        Raises:
            OSError: It is no plain file, or cannot be opened.
            ValueError: It is another file than at the first look.
        """
        file = open_plain(self.path)
        found = os.fstat(file.fileno())
        state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if self._state not in (None, state):
            file.close()
            raise ValueError("it was changed since the store was opened")
        self._state = state
        return file

    def open(self) -> BinaryIO:
        """Open it for its values.

        Raises:
            OSError: It is no plain file, or cannot be read.
            ValueError: It was changed.
        """
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(self.peek())
            if not self._right:
                if stream_sha256(file) != self.sha256:
                    raise ValueError("its content is not what the manifest lists")
                self._right = True
                file.seek(0)
            stack.pop_all()  # whoever asked for it closes it
        return file

    def check(self) -> None:
        """Hash all of it, whether it was hashed before or not.

        Raises:
            OSError: It is no plain file, or cannot be read.
            ValueError: It was changed.
        """
        self._right = False
        self.open().close()


class HashedFile:
    """An open file that hashes what is written to it, front to back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self.closed = False

    def write(self, data: Any) -> int:
        """Write bytes."""
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Hand them to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Leave the file to whoever opened it."""
        self.closed = True

    def sha256(self) -> str:
        """Of what was written, 64 hexadecimal digits."""
        return self._digest.hexdigest()
