"""A batch as analyses see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from interpretune.models.padding import ATTENTION_MASK, answer_positions, mask_of, tokens_of
from interpretune.models.row_columns import without_row_columns


@frozen(eq=False)
class Points:
    """Points in a batch: one token of one example each.

    Attributes:
        examples: ``[n]``.
        positions: ``[n]``.
    """

    examples: Tensor
    positions: Tensor

    def of(self, values: Tensor) -> Tensor:
        """The values at the points: ``[batch, pos, ...]`` to ``[n, ...]``."""
        return values[self.examples, self.positions]

    def select(self, which: Tensor) -> Points:
        """The given points, in the given order; points may repeat."""
        return Points(self.examples[which], self.positions[which])

    def __len__(self) -> int:
        return len(self.examples)


@frozen(eq=False)
class ModelInputs:
    """A batch as analyses see it: tokens and mask, whatever the batch calls them.

    Attributes:
        tokens: ``[batch, pos]``.
        attention_mask: ``[batch, pos]``, 1 for real tokens.
        extra: Other inputs of the model, each ``[batch, ...]``.
        prompt_ends: Last position of each prompt where tokens of an answer follow it, ``[batch]``; None where none do.
    """

    tokens: Tensor
    attention_mask: Tensor
    extra: Mapping[str, Tensor] = field(factory=dict)
    prompt_ends: Tensor | None = None

    @classmethod
    def from_batch(cls, batch: Mapping[str, Any]) -> ModelInputs:
        """Take tokens, mask and other inputs from a batch, without labels.

        Raises:
            DataError: The batch has no tokens or no attention mask.
        """
        name, tokens = tokens_of(batch)
        known = {name, ATTENTION_MASK, "labels"}
        rest = {key: value for key, value in without_row_columns(batch).items() if key not in known}
        return cls(tokens=tokens, attention_mask=mask_of(batch), extra=rest)

    @property
    def answer_positions(self) -> Tensor:
        """Last non-padding position of each row, ``[batch]``."""
        return answer_positions(self.attention_mask)

    @property
    def answers(self) -> Points:
        """The answer position of each row."""
        return Points(torch.arange(len(self), device=self.tokens.device), self.answer_positions)

    def select(self, rows: Tensor) -> ModelInputs:
        """The given rows, ``[n]``, in the given order; rows may repeat."""
        return ModelInputs(
            self.tokens[rows],
            self.attention_mask[rows],
            {name: value[rows] for name, value in self.extra.items()},
            None if self.prompt_ends is None else self.prompt_ends[rows],
        )

    def __len__(self) -> int:
        return self.tokens.shape[0]


def probe_inputs(device: torch.device, n_tokens: int = 2) -> ModelInputs:
    """A batch with one row of a few tokens, all different, to find out what a model does at its hook points."""
    tokens = torch.arange(n_tokens, device=device).unsqueeze(0)
    return ModelInputs(tokens, torch.ones_like(tokens))


def lone_tokens(vectors: Tensor) -> ModelInputs:
    """A batch with a row of one token for each vector ``[n, ...]``, which takes the place of what the token becomes."""
    tokens = torch.zeros(len(vectors), 1, dtype=torch.long, device=vectors.device)
    return ModelInputs(tokens, torch.ones_like(tokens))
