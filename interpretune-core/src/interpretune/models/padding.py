"""Padded rows of tokens: their mask, the answer position, positions that count, and how rows become a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import BatchEncoding

from interpretune.errors import DataError
from interpretune.models.row_columns import collate_row_columns, without_row_columns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ATTENTION_MASK = "attention_mask"
"""Name of the attention mask in batches."""
INPUT_NAMES = ("input_ids", "input")
"""Names of the tokens in batches: Hugging Face's, and that of models whose argument is ``input``."""


def tokens_of(batch: Mapping[str, Any]) -> tuple[str, Tensor]:
    """The tokens of a batch, ``[batch, pos]``, and their name in it.

    Raises:
        DataError: The batch has no tokens.
    """
    for name in INPUT_NAMES:
        if name in batch:
            return name, batch[name]
    raise DataError(f"The batch has no tokens: expected one of {INPUT_NAMES}, found {sorted(batch)}.")


def mask_of(batch: Mapping[str, Any]) -> Tensor:
    """The attention mask of a batch, ``[batch, pos]``, 1 for real tokens.

    Raises:
        DataError: The batch has none, or a row without any real token.
    """
    if ATTENTION_MASK not in batch:
        raise DataError(
            f"The batch has no {ATTENTION_MASK}, and padding cannot be told from the tokens where BOS and "
            f"padding share an id. Keep the tokenizer's {ATTENTION_MASK} in the data set. Found {sorted(batch)}."
        )
    mask: Tensor = batch[ATTENTION_MASK]
    empty = (mask.sum(dim=-1) == 0).nonzero().flatten().tolist()
    if empty:
        raise DataError(f"Rows {empty} of the batch have no token that is not padding.")
    return mask


def answer_positions(attention_mask: Tensor) -> Tensor:
    """Index ``[batch]`` of the last real token of each row, by a mask ``[batch, pos]`` of either padding side."""
    width = attention_mask.shape[-1]
    return width - 1 - attention_mask.flip(-1).to(torch.int64).argmax(dim=-1)


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count only real tokens, ``[batch, pos]``; no real token uses the positions of padding."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def real_tokens(tokens: Tensor, attention_mask: Tensor) -> list[Tensor]:
    """The tokens of each row without padding, ``[pos]`` each, from ``[batch, pos]`` and its mask."""
    return [row[keep] for row, keep in zip(tokens, attention_mask.bool(), strict=True)]


def pad_left(tokens: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding of each row to its left, as generation needs it.

    Args:
        tokens: ``[batch, pos]``.
        attention_mask: ``[batch, pos]``.

    Returns:
        Tokens and mask of the same shapes; real tokens keep their order.
    """
    order = attention_mask.to(torch.int64).argsort(dim=-1, stable=True)
    return tokens.gather(-1, order), attention_mask.gather(-1, order)


class PaddingCollator:
    """Joins rows into a batch: pads to the longest row on the tokenizer's side, and drops columns of only padding."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> BatchEncoding:
        """Collate rows.

        Args:
            rows: Mappings with tokens, ``attention_mask`` and, optionally, ``labels``; rows of questions have more.

        Returns:
            Tensors: tokens and mask ``[batch, pos]``, every other column ``[batch, ...]``; see ``row_columns``.

        Raises:
            DataError: A row has no attention mask.
        """
        if any(ATTENTION_MASK not in row for row in rows):
            raise DataError(
                f"A row has no {ATTENTION_MASK} (columns {sorted(rows[0])}), and padding cannot be told from "
                "the tokens where BOS and padding share an id. Keep it when you prepare the data set."
            )
        main_input = self.tokenizer.model_input_names[0]
        padded_names = {main_input, *self.tokenizer.model_input_names}
        batch = self.tokenizer.pad(
            {name: [row[name] for row in rows] for name in rows[0] if name in padded_names},
            padding=True,
            return_tensors="pt",
        )
        used = batch[ATTENTION_MASK].any(dim=0)
        for name in list(batch):
            batch[name] = batch[name][:, used]
        own = collate_row_columns(rows, batch[ATTENTION_MASK], batch[main_input])
        for name in without_row_columns(rows[0]) if own else rows[0]:
            if name not in padded_names:
                column = torch.tensor([row[name] for row in rows])
                batch[name] = column.long() if name == "labels" and column.dtype == torch.bool else column
        batch.update(own)
        return batch
