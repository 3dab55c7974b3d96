"""What batches hold of the rows of a question, beside tokens and labels; no model reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

ANSWER_TOKENS = "answer_tokens"
"""Tokens of each row's own answers, ``[batch, k, t]``; -1 where a row has fewer answers, or an answer fewer tokens."""
CORRUPTED_TOKENS = "corrupted_tokens"
"""The corrupted prompts, ``[batch, pos]``, in the slots of the prompts; -1 in rows that have none."""
SPAN = "span_tokens."
"""Before the name of a span: its first slot and the one after its last, ``[batch, 2]``; -1 in rows that lack it."""
ROW = "question_row"
"""The row as JSON, in prepared data; batches have tensors only."""


def without_row_columns(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch as models take it."""
    return {name: value for name, value in batch.items() if not _is_row_column(name)}


def collate_row_columns(rows: Sequence[Mapping[str, Any]], mask: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """The columns of rows of a question as tensors; none for other rows.

    Args:
        rows: As a prepared split has them.
        mask: Attention mask of the batch, ``[batch, pos]``.
        tokens: Tokens of the batch, ``[batch, pos]``.
    """
    if any(ROW not in row for row in rows):
        return {}
    most = max([1, *(len(row[ANSWER_TOKENS]) for row in rows)])
    longest = max([1, *(len(answer) for row in rows for answer in row[ANSWER_TOKENS])])
    answers = torch.full((len(rows), most, longest), -1)
    for i, row in enumerate(rows):
        for j, answer in enumerate(row[ANSWER_TOKENS]):
            answers[i, j, : len(answer)] = torch.as_tensor(answer)
    found = {ANSWER_TOKENS: answers}
    if CORRUPTED_TOKENS in rows[0]:
        corrupted = tokens.clone()
        for i, row in enumerate(rows):
            given = row[CORRUPTED_TOKENS]
            where = mask[i].bool() if given is not None else torch.ones_like(mask[i]).bool()
            corrupted[i, where] = torch.as_tensor(-1 if given is None else given)
        found[CORRUPTED_TOKENS] = corrupted
    first = mask.long().argmax(-1).tolist()
    for name in rows[0]:
        if name.startswith(SPAN):
            found[name] = torch.tensor(
                [
                    [-1, -1] if row[name] is None else [at + start for at in row[name]]
                    for row, start in zip(rows, first, strict=True)
                ]
            )
    return found


def _is_row_column(name: str) -> bool:
    return name in (ANSWER_TOKENS, CORRUPTED_TOKENS, ROW) or name.startswith(SPAN)
