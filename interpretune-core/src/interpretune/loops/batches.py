"""Reads batches of a loader up to a limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

from interpretune.errors import TrainingError


def count_batches(loader: Any, limit: int | float | None) -> int | None:
    """Batches that a loop reads: those of the loader or the limit; None where the loader has no length.

    Raises:
        TrainingError: A share is asked of a loader without a length, or there are no batches.
    """
    length = _length(loader)
    if length == 0:
        raise TrainingError("The loader has no batches. Does the split have rows, and does drop_last drop them all?")
    if isinstance(limit, float):
        if length is None:
            raise TrainingError(f"A loader without a length cannot be limited to the share {limit}. Give a number.")
        return int(length * limit)
    return length if limit is None or length is None else min(limit, length)


def numbered(loader: Any, limit: int | float | None, skip: int = 0) -> Iterator[tuple[int, Any, bool]]:
    """Batches with their index and whether each is the last.

    A loader without a length is read one batch ahead; others are not, so that random draws keep their order.

    Args:
        loader: The loader.
        limit: A number of batches, a share of all, or None for all.
        skip: Batches to read and drop first.
    """
    count = count_batches(loader, limit)
    if count == 0 or limit == 0:
        return
    if count is not None:
        for index, batch in islice(enumerate(loader), count):
            if index >= skip:
                yield index, batch, index + 1 == count
        return
    waiting = None
    for item in islice(enumerate(loader), None if limit is None else int(limit)):
        if waiting is not None and waiting[0] >= skip:
            yield *waiting, False
        waiting = item
    if waiting is not None:
        yield *waiting, True


def only_loader(loader: Any, name: str) -> Any:
    """Check that there is one loader.

    Raises:
        TrainingError: There are several, or none.
    """
    if isinstance(loader, Sequence) and not isinstance(loader, DataLoader):
        raise TrainingError(f"{name} returned {len(loader)} loaders; this loop reads one. Return a single DataLoader.")
    return loader


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:  # a DataLoader over an iterable data set
        return None
