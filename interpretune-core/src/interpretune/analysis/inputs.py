"""A batch as analyses see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from torch import Tensor

from interpretune.tokenization import ATTENTION_MASK, answer_positions, mask_of, tokens_of


@frozen(eq=False)
class ModelInputs:
    """A batch as analyses see it: tokens and mask, whatever the batch calls them.

    Attributes:
        tokens: ``[batch, pos]``.
        attention_mask: ``[batch, pos]``, 1 for real tokens.
        extra: Further inputs of the model, each ``[batch, ...]``.
    """

    tokens: Tensor
    attention_mask: Tensor
    extra: Mapping[str, Tensor] = field(factory=dict)

    @classmethod
    def from_batch(cls, batch: Mapping[str, Any]) -> ModelInputs:
        """Take tokens, mask and further inputs out of a batch; labels are left.

        Raises:
            DataError: The batch has no tokens or no attention mask.
        """
        name, tokens = tokens_of(batch)
        rest = {key: value for key, value in batch.items() if key not in {name, ATTENTION_MASK, "labels"}}
        return cls(tokens=tokens, attention_mask=mask_of(batch), extra=rest)

    @property
    def answer_positions(self) -> Tensor:
        """Last non-padding position of each row, ``[batch]``."""
        return answer_positions(self.attention_mask)

    def select(self, rows: Tensor) -> ModelInputs:
        """The given rows, ``[n]``, in the given order; rows may repeat."""
        return ModelInputs(
            self.tokens[rows], self.attention_mask[rows], {name: value[rows] for name, value in self.extra.items()}
        )

    def __len__(self) -> int:
        return self.tokens.shape[0]
