"""How much an archive may unpack to, and the reader that holds it to that."""

from __future__ import annotations

import gzip
import io
from typing import Protocol

from attrs import field, frozen, validators

from interpretune.errors import StoreError

GZIP_MAGIC = b"\x1f\x8b"
HEADER_BYTES = 1 << 20
"""What one member's header may take: names are short, so more is an attempt to fill the memory."""
RATIO_FROM = 16 << 20
"""Unpacked bytes below which the ratio does not matter: the padding of a small archive compresses well."""


class Readable(Protocol):
    """Anything to read bytes from, once and forward."""

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes, none at the end."""
        ...


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
    """Unpacked bytes of an archive, compressed or not; raises ``StoreError`` as soon as there are too many.

    Args:
        archive: The archive's bytes; read once, forward.
        limits: What is allowed.
        name: The archive, in errors.
    """

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
    """Refuse values that take far more memory than their files take on the disk.

    Args:
        unfolded: Bytes of the values.
        size: Bytes of the files.
        limits: What is allowed.
        name: The store, in errors.

    Raises:
        StoreError: They exceed a limit.
    """
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
