"""Two stores side by side: by example, and by example, hook and latent, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from attrs import evolve, frozen
from numpy.typing import NDArray

from interpretune.analysis.direction import TOWARDS_CORRECT, Direction
from interpretune.errors import StoreError
from interpretune.store.columns import floats
from interpretune.store.latents import hook_codes

if TYPE_CHECKING:
    from interpretune.store import AnalysisStore

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

LABELS = "orig_labels"
"""The field of the correct answers."""
_LATENT_BITS = 32


@frozen(eq=False)
class Pairs:
    """What two stores say of the same latent in the same example, ``[n]`` each, sorted by example and column.

    Attributes:
        example: Its place in ``Join.examples``.
        column: Hook and latent; see ``Join.hook_of`` and ``Join.latent_of``.
        left: Number in the left store, 0 where it has no entry.
        right: Number in the right store, 0 where it has no entry.
    """

    example: Integers
    column: Integers
    left: Floats
    right: Floats

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Which of them have two finite numbers."""
        return np.isfinite(self.left) & np.isfinite(self.right)

    def where(self, chosen: NDArray[np.bool_] | Integers) -> Pairs:
        """Some of them."""
        return Pairs(self.example[chosen], self.column[chosen], self.left[chosen], self.right[chosen])


class Join:
    """The examples and latent models that two stores have in common, and their pairs of numbers.

    Reads the examples of both once. ``pairs`` can be called any number of times; it holds only those rows whose
    partners are still to come, which are few where both stores went through the examples in the same order.

    Attributes:
        examples: Those in both stores, ascending.
        only_left: Number of examples that only the left store has.
        only_right: Number of examples that only the right store has.
        hooks: Activation names in both stores; empty for fields that are not per latent.
        hooks_apart: Activation names in one store only.
    """

    def __init__(
        self,
        left: AnalysisStore,
        right: AnalysisStore,
        fields: tuple[str, str],
        names: tuple[str, str],
        *,
        latents: bool,
        direction: Direction = TOWARDS_CORRECT,
    ) -> None:
        self._sides = (_Order(left, fields[0], names[0]), _Order(right, fields[1], names[1]))
        one, other = self._sides
        self.examples: Integers = np.intersect1d(one.sorted, other.sorted, assume_unique=True)
        self.only_left = len(one.sorted) - len(self.examples)
        self.only_right = len(other.sorted) - len(self.examples)
        if not len(self.examples):
            raise StoreError(
                f"The stores have no example in common ({names[0]} has {len(one.sorted):,}, {names[1]} "
                f"{len(other.sorted):,}). "
                "Compare results of the same examples of the same data set."
            )
        turned = direction.label is not None
        self._signs = [side.signs(self.examples, direction) for side in self._sides] if turned else None
        found = [side.hooks() if latents else [] for side in self._sides]
        self.hooks = [hook for hook in found[0] if hook in found[1]]
        self.hooks_apart = sorted({*found[0]} ^ {*found[1]})
        if latents and not self.hooks and any(found):
            raise StoreError(
                f"The stores have no latent model in common ({names[0]}: {', '.join(found[0]) or 'none'}; {names[1]}: "
                f"{', '.join(found[1]) or 'none'}). Compare results at the same places."
            )

    def hook_of(self, column: Integers) -> Integers:
        """Index in ``hooks``."""
        return column >> _LATENT_BITS

    def latent_of(self, column: Integers) -> Integers:
        """Id of the latent."""
        return column & ((1 << _LATENT_BITS) - 1)

    def values(self) -> tuple[Floats, Floats]:
        """A field of one number for each example, in both stores, in the order of ``examples``."""
        one, other = (side.per_example(self.examples) for side in self._sides)
        return (one, other) if self._signs is None else (one * self._signs[0], other * self._signs[1])

    def pairs(self) -> Iterator[Pairs]:
        """Pairs of numbers of which at least one is not 0, a few examples at a time and never part of one."""
        one, other = (_Reader(side, self.examples, self.hooks) for side in self._sides)
        while one.left or other.left:
            behind = one if one.left and (not other.left or one.progress <= other.progress) else other
            behind.advance()
            found = _matched(one.take(other), other.take(one))
            if len(found.example):
                yield self._turned(found)

    def _turned(self, found: Pairs) -> Pairs:
        """Pairs as effects towards the answer that was asked for."""
        if self._signs is None:
            return found
        left, right = (signs[found.example] for signs in self._signs)
        return evolve(found, left=found.left * left, right=found.right * right)


class _Order:
    """Which examples a store has, and in which row."""

    def __init__(self, store: AnalysisStore, field: str, name: str) -> None:
        self.store, self.field, self.name = store, field, name
        units = store.manifest.about.get("question", {}).get("units", [])
        self.called = {item["name"]: item["activation"] for item in units if "activation" in item}
        read = [batch.column("example").to_numpy(zero_copy_only=False) for batch in store.record_batches(["example"])]
        rows: Integers = np.concatenate(read).astype(np.int64) if read else np.empty(0, np.int64)
        self._sorter = np.argsort(rows, kind="stable")
        self.sorted: Integers = rows[self._sorter]
        twice = self.sorted[1:][self.sorted[1:] == self.sorted[:-1]]
        if len(twice):
            raise StoreError(
                f"{name} has example {twice[0]} more than once, so that it cannot be joined by example. Write "
                "each example once."
            )

    def row(self, examples: Integers) -> Integers:
        """Rows of examples that the store has."""
        return self._sorter[np.searchsorted(self.sorted, examples)]

    def hooks(self) -> list[str]:
        """Activation names, in the order in which they appear."""
        names: dict[str, None] = {}
        for batch in self.store.latents([self.field]):
            # Other fields may know latent models that this one does not.
            known = batch.column("hook").filter(batch.column(self.field).is_valid())
            names.update(dict.fromkeys(known.unique().to_pylist()))
        return [self.called.get(name, name) for name in names]

    def signs(self, examples: Integers, direction: Direction) -> Floats:
        """1 where the numbers of an example are as stored, -1 where they are turned round."""
        field = "correct" if "question" in self.store.manifest.about else LABELS
        if field not in self.store.fields:
            raise StoreError(f"{self.name} keeps no {field}: effects towards {direction.name} need them.")
        read = [batch.column(field).to_numpy(zero_copy_only=False) for batch in self.store.record_batches([field])]
        labels = np.concatenate(read)[self.row(examples)].astype(np.int64)
        return direction.signs(torch.from_numpy(labels)).numpy()

    def per_example(self, examples: Integers) -> Floats:
        """The field's numbers."""
        read = [floats(batch.column(self.field)) for batch in self.store.record_batches([self.field])]
        return np.concatenate(read)[self.row(examples)]


class _Reader:
    """One pass over the latents of a store."""

    def __init__(self, order: _Order, examples: Integers, hooks: list[str]) -> None:
        own = {called: name for name, called in order.called.items()}
        self._order, self._examples, self._hooks = order, examples, [own.get(hook, hook) for hook in hooks]
        self._rows = order.row(examples)
        self._batches = iter(order.store.latents([order.field]))
        self._closed = 0
        self._held: tuple[Integers, Integers, Floats] = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
        self.left = True

    @property
    def progress(self) -> float:
        """Share of the rows that were read."""
        return self._closed / len(self._order.sorted)

    def advance(self) -> None:
        """Read on. A record batch holds whole examples, in the order of the store's rows."""
        batch = next(self._batches, None)
        if batch is None:
            self._closed, self.left = len(self._order.sorted), False
            return
        if not batch.num_rows:
            return
        examples = batch.column("example").to_numpy(zero_copy_only=False).astype(np.int64)
        self._closed = int(self._order.row(examples[-1:])[0]) + 1
        places = np.searchsorted(self._examples, examples).clip(max=len(self._examples) - 1)
        columns = self._columns(batch)
        values = batch.column(self._order.field)
        known = values.is_valid().to_numpy(
            zero_copy_only=False
        )  # another field may know a latent that this one does not
        ours = known & (self._examples[places] == examples) & (columns >= 0)
        new = (places[ours], columns[ours], floats(values)[ours])
        self._held = (
            np.concatenate([self._held[0], new[0]]),
            np.concatenate([self._held[1], new[1]]),
            np.concatenate([self._held[2], new[2]]),
        )

    def take(self, other: _Reader) -> tuple[Integers, Integers, Floats]:
        """Give away what the other store has read as well."""
        places, columns, values = self._held
        ready = other._rows[places] < other._closed
        self._held = (places[~ready], columns[~ready], values[~ready])
        return places[ready], columns[ready], values[ready]

    def _columns(self, batch: pa.RecordBatch) -> Integers:
        """Hook and latent as one number; negative for a hook that only one store has."""
        return (hook_codes(batch.column("hook"), self._hooks) << _LATENT_BITS) | batch.column("latent").to_numpy(
            zero_copy_only=False
        ).astype(np.int64)


def _matched(left: tuple[Integers, Integers, Floats], right: tuple[Integers, Integers, Floats]) -> Pairs:
    names, compact = np.unique(np.concatenate([left[1], right[1]]), return_inverse=True)
    codes = np.concatenate([left[0], right[0]]) * max(len(names), 1) + compact
    cells, place = np.unique(codes, return_inverse=True)
    sides = []
    for values, where in ((left[2], place[: len(left[2])]), (right[2], place[len(left[2]) :])):
        if len(where) and np.bincount(where).max() > 1:
            raise StoreError("A store lists a latent twice in one example: it is damaged. Write it again.")
        side = np.zeros(len(cells))
        side[where] = values
        sides.append(side)
    pairs = Pairs(cells // max(len(names), 1), names[cells % max(len(names), 1)], sides[0], sides[1])
    return pairs.where((pairs.left != 0) | (pairs.right != 0))
