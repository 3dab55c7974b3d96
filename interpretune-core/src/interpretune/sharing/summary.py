"""The numbers on a card: means and ranges, read once and a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from attrs import define, field
from numpy.typing import NDArray

from interpretune.store.fields import Per

if TYPE_CHECKING:
    from interpretune.store import AnalysisStore


@define
class Numbers1D:
    """Count, mean and range of the finite numbers of one field."""

    name: str
    count: int = 0
    total: float = 0.0
    lowest: float = float("nan")
    highest: float = float("nan")

    @property
    def mean(self) -> float:
        """Their mean; NaN where there are none."""
        return self.total / self.count if self.count else float("nan")

    def add(self, values: NDArray[np.float64]) -> None:
        """Count more numbers."""
        values = values[np.isfinite(values)]
        if not len(values):
            return
        self.count += len(values)
        self.total += float(values.sum())
        self.lowest = float(np.fmin(self.lowest, values.min()))
        self.highest = float(np.fmax(self.highest, values.max()))


@define
class HookNumbers:
    """What is known of the latents of one latent model."""

    name: str
    entries: int = 0
    fields: list[Numbers1D] = field(factory=list)
    _seen: NDArray[np.int64] = field(factory=lambda: np.empty(0, np.int64))

    @property
    def latents(self) -> int:
        """How many latents have an entry."""
        return len(self._seen)

    def add(self, latents: NDArray[np.int64], columns: list[NDArray[np.float64]]) -> None:
        """Count more entries."""
        self.entries += len(latents)
        self._seen = np.union1d(self._seen, latents)
        for numbers, values in zip(self.fields, columns, strict=True):
            numbers.add(values)


@define
class Numbers:
    """Everything that a card counts."""

    fields: list[Numbers1D]
    hooks: list[HookNumbers]


def numbers_of(store: AnalysisStore) -> Numbers:
    """Read a store once for its examples and once for its latents."""
    per_example = [Numbers1D(name) for name in _plain(store, Per.example)]
    if per_example:
        for batch in store.record_batches([numbers.name for numbers in per_example]):
            for numbers in per_example:
                numbers.add(floats(batch.column(numbers.name)))
    return Numbers(per_example, _hooks(store))


def floats(column: pa.Array) -> NDArray[np.float64]:
    """A column of numbers or truth values in float64, NaN where it has none."""
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def _hooks(store: AnalysisStore) -> list[HookNumbers]:
    if not any(f.per is Per.latent for f in store.fields.values()):
        return []
    names = _plain(store, Per.latent)
    hooks: dict[str, HookNumbers] = {}
    for batch in store.latents(names):
        latents = batch.column("latent").to_numpy(zero_copy_only=False).astype(np.int64)
        columns = [floats(batch.column(name)) for name in names]
        for hook, rows in by_hook(batch.column("hook")):
            numbers = hooks.setdefault(hook, HookNumbers(hook, fields=[Numbers1D(name) for name in names]))
            numbers.add(latents[rows], [values[rows] for values in columns])
    return list(hooks.values())


def by_hook(column: pa.Array) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The hooks in a column, and which rows are theirs."""
    encoded = column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    for code, hook in enumerate(encoded.dictionary.to_pylist()):
        rows = codes == code
        if rows.any():
            yield hook, rows


def _plain(store: AnalysisStore, per: Per) -> list[str]:
    """Names of the fields with one number for each example or latent."""
    return [
        f.name
        for f in store.fields.values()
        if f.per is per and f.stored and f.dtype != "string" and not f.shape and not f.ragged
    ]
