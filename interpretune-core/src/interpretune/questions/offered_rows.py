"""Rows from sources of installed packages: ``name:address``, in code and in configuration files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import datasets

from interpretune.errors import DataError
from interpretune.system.offered import ROWS, Offer, addressed

SPLIT = "validation"
"""Of rows without splits."""
_FETCHED: ContextVar[dict[str, Mapping[str, datasets.Dataset]] | None] = ContextVar("_FETCHED", default=None)


@contextmanager
def fetched_once() -> Iterator[None]:
    """Inside, each source is asked once, so that a key and the rows under it are of the same answer."""
    token = _FETCHED.set({})
    try:
        yield
    finally:
        _FETCHED.reset(token)


def offered_splits(source: Any) -> Mapping[str, datasets.Dataset] | None:
    """The splits of a source that a package offers; None: the text names none.

    Raises:
        AdapterError: The package cannot be imported, or what it offers cannot be used.
        DataError: It fails, or what it returns are no rows.
    """
    if (found := addressed(ROWS, source)) is None:
        return None
    kept = _FETCHED.get()
    if kept is not None and str(source) in kept:
        return kept[str(source)]
    offer, address = found
    given = offer.call(DataError, address)
    if isinstance(given, datasets.Dataset) or not isinstance(given, Mapping):
        given = {SPLIT: given}
    splits = {str(split): _dataset(rows, offer) for split, rows in given.items()}
    if not splits:
        raise DataError(f"The source of rows {offer} has no rows at {address!r}.")
    if kept is not None:
        kept[str(source)] = splits
    return splits


def splits_fingerprint(splits: Mapping[str, datasets.Dataset]) -> str:
    """SHA-256 of the rows of each split, since an address says nothing of what stands there today."""
    found = []
    for split, rows in splits.items():
        written = hashlib.sha256()
        for row in rows:
            written.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
        found.append(f"{split}={written.hexdigest()}")
    return " ".join(found)


def _dataset(rows: Any, offer: Offer) -> datasets.Dataset:
    if isinstance(rows, datasets.Dataset):
        return rows
    try:
        records = [dict(row) for row in rows]
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The source of rows {offer} returned a {type(rows).__name__}. It must return mappings with the columns of "
            "rows, a datasets.Dataset, or either by split."
        ) from error
    names = list(dict.fromkeys(name for record in records for name in record))
    return datasets.Dataset.from_list([{name: record.get(name) for name in names} for record in records])
