"""Reads batches of a loader up to a limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

from interpretune.errors import TrainingError

NO_BATCHES = "The loader has no batches. Does the split have rows, and does drop_last drop them all?"


def count_batches(loader: Any, limit: int | float | None) -> int | None:
    """Batches that a loop reads: those of the loader or the limit; None where the loader has no length.

    Raises:
        TrainingError: There are no batches, a share of them is none, or is asked of a loader without a length.
    """
    length = _length(loader)
    if length == 0:
        raise TrainingError(NO_BATCHES)
    if limit is None or (limit == 1 and isinstance(limit, float)):
        return length
    if not isinstance(limit, float):
        return limit if length is None else min(limit, length)
    if length is None:
        raise TrainingError(f"A loader without a length cannot be limited to the share {limit}. Give a number.")
    count = int(length * limit)
    if limit and not count:
        raise TrainingError(f"The share {limit} of {length} batches is no batch. Give a larger share, or a number.")
    return count


def read_batches(loader: Any, count: int | None) -> Iterator[tuple[int, Any]]:
    """The first ``count`` batches, or all, with their index.

    Raises:
        TrainingError: A loader without a length turns out to be empty.
    """
    index = -1
    if count != 0:
        for index, batch in enumerate(islice(loader, count)):
            yield index, batch
        if index < 0:
            raise TrainingError(NO_BATCHES)


def only_loader(loader: Any, name: str) -> Any:
    """Check that there is one loader.

    Raises:
        TrainingError: There are several, or none.
    """
    if loader is None:
        raise TrainingError(f"{name} returned None where a loader is expected. Return a DataLoader.")
    if isinstance(loader, (Sequence, Mapping)) and not isinstance(loader, DataLoader):
        raise TrainingError(f"{name} returned {len(loader)} loaders; this loop reads one. Return a single DataLoader.")
    return loader


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):  # a DataLoader over an iterable data set
        return None
