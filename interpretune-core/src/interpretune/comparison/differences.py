"""What differs most between two stores: totals of latents, and single numbers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from interpretune.comparison.joining import Floats, Integers, Join, Pairs


class Counts:
    """Pairs and their sums for each column, counted a few examples at a time.

    Attributes:
        columns: Hook and latent as in ``Pairs.column``, ascending.
        pairs: Number of pairs with a number other than 0 on some side.
        pairs_left: Those of them with 0 on the right.
        pairs_right: Those of them with 0 on the left.
        not_finite: Number of pairs with a number that is not finite; nothing else counts them.
    """

    def __init__(self) -> None:
        self.columns: Integers = np.empty(0, np.int64)
        self._sums: Floats = np.empty((4, 0))
        self.pairs = self.pairs_left = self.pairs_right = self.not_finite = 0

    def add(self, pairs: Pairs) -> Pairs:
        """Count pairs; those that are finite come back."""
        finite = pairs.finite
        self.not_finite += int((~finite).sum())
        pairs = pairs.where(finite)
        self.pairs += len(pairs.left)
        self.pairs_left += int((pairs.right == 0).sum())
        self.pairs_right += int((pairs.left == 0).sum())
        self._grow(np.union1d(self.columns, pairs.column))
        place = np.searchsorted(self.columns, pairs.column)
        numbers = (pairs.left, pairs.right, pairs.left != 0, pairs.right != 0)
        for row, weights in enumerate(numbers):
            self._sums[row] += np.bincount(place, weights, minlength=len(self.columns))
        return pairs

    def table(self, join: Join) -> pa.Table:
        """The sums, ordered by the size of the difference."""
        left, right = self._sums[0], self._sums[1]
        order = np.lexsort((self.columns, -np.abs(left - right)))
        columns = self.columns[order]
        return pa.table(
            {
                **_named(join, columns),
                "left": left[order],
                "right": right[order],
                "difference": (left - right)[order],
                "examples_left": self._sums[2][order].astype(np.int64),
                "examples_right": self._sums[3][order].astype(np.int64),
            }
        )

    def _grow(self, columns: Integers) -> None:
        if len(columns) > len(self.columns):
            sums = np.zeros((len(self._sums), len(columns)))
            sums[:, np.searchsorted(columns, self.columns)] = self._sums
            self.columns, self._sums = columns, sums


class Largest:
    """The pairs that differ most, found a few examples at a time.

    Args:
        count: How many are kept.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        empty = np.empty(0, np.int64)
        self._kept = Pairs(empty, empty, np.empty(0), np.empty(0))

    def add(self, pairs: Pairs) -> None:
        """Keep those pairs that are among the largest so far; of equal ones the first examples and columns."""
        both = Pairs(
            np.concatenate([self._kept.example, pairs.example]),
            np.concatenate([self._kept.column, pairs.column]),
            np.concatenate([self._kept.left, pairs.left]),
            np.concatenate([self._kept.right, pairs.right]),
        )
        order = np.lexsort((both.column, both.example, -np.abs(both.left - both.right)))
        self._kept = both.where(order[: self._count])

    def table(self, join: Join, *, latents: bool) -> pa.Table:
        """The pairs, largest difference first."""
        kept = self._kept
        return pa.table(
            {
                "example": join.examples[kept.example],
                **(_named(join, kept.column) if latents else {}),
                "left": kept.left,
                "right": kept.right,
                "difference": kept.left - kept.right,
            }
        )


def _named(join: Join, columns: Integers) -> dict[str, pa.Array]:
    hooks = pa.array(join.hooks, pa.string())
    return {"hook": hooks.take(pa.array(join.hook_of(columns))), "latent": pa.array(join.latent_of(columns))}
