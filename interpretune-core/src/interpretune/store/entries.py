"""Files of a store as its manifest lists them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from attrs import frozen


@frozen
class ShardEntry:
    """A piece of the table.

    Attributes:
        file: Relative to the store, ``shards/NAME.parquet``.
        rows: Examples.
        spans: Indices of its batches, ascending where they are one process's.
        sha256: Of the file, 64 hexadecimal digits.
    """

    file: str
    rows: int
    spans: tuple[range, ...]
    sha256: str

    @classmethod
    def of(cls, file: str, rows: int, batches: Iterable[int], sha256: str) -> ShardEntry:
        """The entry of a shard with these batches."""
        return cls(file, rows, tuple(_spans(sorted(batches))), sha256)

    @property
    def n_batches(self) -> int:
        """Number of batches; nothing is counted out, as a manifest from elsewhere may say anything."""
        return sum((span.stop - span.start + span.step - 1) // span.step for span in self.spans)

    @property
    def batches(self) -> tuple[int, ...]:
        """Indices, ascending. Of an entry from elsewhere, see that ``n_batches`` is that of the file before."""
        return tuple(sorted(index for span in self.spans for index in span))


@frozen
class TableEntry:
    """A table of the whole run.

    Attributes:
        file: Relative to the store, ``tables/NAME.parquet``.
        rows: Rows.
        sha256: Of the file.
    """

    file: str
    rows: int
    sha256: str


def _spans(batches: Sequence[int]) -> Iterator[range]:
    """Ascending numbers as ranges: ranks take every n-th batch."""
    start = 0
    while start < len(batches):
        step = batches[start + 1] - batches[start] if start + 1 < len(batches) else 1
        stop = start + 1
        while stop < len(batches) and batches[stop] - batches[stop - 1] == step:
            stop += 1
        yield range(batches[start], batches[stop - 1] + 1, step)
        start = stop
