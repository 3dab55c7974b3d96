"""The batches of a store as a sequence that is read while it is gone through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

from interpretune.store import AnalysisStore, StoredBatch

T = TypeVar("T")


class BatchSequence(Sequence[T], Generic[T]):
    """Something of each batch of a store, in order; memory holds one batch at a time."""

    def __init__(self, store: AnalysisStore | None, fields: Sequence[str], make: Callable[[StoredBatch], T]) -> None:
        """Look at a store.

        Args:
            store: None: there are no batches.
            fields: Which fields are read.
            make: Makes the entry of a batch.
        """
        self._store, self._fields, self._make = store, list(fields), make

    def __len__(self) -> int:
        return 0 if self._store is None else self._store.n_batches

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if self._store is None or not -len(self) <= index < len(self):
            raise IndexError(f"There is no batch {index}; there are {len(self)}.")
        return self._make(self._store.batch(self._store.batch_indices[index], self._fields))

    def __iter__(self) -> Iterator[T]:
        if self._store is not None:
            yield from map(self._make, self._store.batches(self._fields))
