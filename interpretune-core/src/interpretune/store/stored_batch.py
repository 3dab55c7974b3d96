"""The results of one batch, read from a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


class StoredBatch(Mapping[str, Any]):
    """The results of one batch, as they were given to the writer; tensors are on the CPU and the caller's own.

    Attributes:
        index: Index of the batch.
        examples: Positions of its examples in the analysed split, ``[n]``, int64.
    """

    def __init__(self, index: int, examples: Tensor, values: Mapping[str, Any]) -> None:
        self.index = index
        self.examples = examples
        self._values = values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"StoredBatch({self.index}, {len(self.examples)} examples, {', '.join(self) or 'no fields'})"
