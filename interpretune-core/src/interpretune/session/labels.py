"""Labels as ids of answers: booleans become 0 and 1, and labels without an answer are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from interpretune.errors import DataError

if TYPE_CHECKING:
    import datasets

LABELS = "labels"
"""Name of the labels in prepared rows and batches."""


def answer_ids(labels: Tensor, count: int | Tensor) -> Tensor:
    """The labels of a batch, ``[batch]``, as int64.

    Args:
        labels: Whole numbers or booleans, ``[batch]``.
        count: Number of answers, of all rows or of each, ``[batch]``.

    Raises:
        DataError: A label has no answer.
    """
    ids = labels.long()
    wrong = ((ids < 0) | (ids >= count)).nonzero().flatten().tolist()
    if wrong:
        most = int(count if isinstance(count, int) else count[wrong[0]])
        raise DataError(
            f"Row {wrong[0]} of the batch has the label {int(ids[wrong[0]])}; expected one of range({most}), one for "
            f"each answer{f' (rows {wrong} are wrong)' if len(wrong) > 1 else ''}. Hidden labels cannot be tested."
        )
    return ids


def check_labels_have_answers(splits: Mapping[str, datasets.Dataset], answers: Sequence[str]) -> None:
    """Refuse prepared rows whose labels exceed the answers (``DataError``); negative labels may be hidden ones."""
    for split, rows in splits.items():
        if LABELS not in getattr(rows, "column_names", ()):
            continue
        labels = np.asarray(rows.with_format("numpy", columns=[LABELS])[:][LABELS])
        if labels.ndim != 1 or labels.dtype.kind not in "iub":
            continue  # of a form that the user's own steps know
        beyond = np.flatnonzero(labels.astype(np.int64) >= len(answers))
        if len(beyond):
            raise DataError(
                f"Row {beyond[0]} of split {split!r} has the label {int(labels[beyond[0]])}; there are "
                f"{len(answers)} answers, {tuple(answers)}, for the labels from 0. Name an answer for each label, or "
                "drop such rows."
            )
