"""Batches of encoded rows, with or without the tokens of their answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.inputs import ModelInputs, Points
from interpretune.errors import ConfigurationError, DataError
from interpretune.questions.encoding import EncodedRow
from interpretune.questions.prompt_row import shown

SIDES = ("left", "right")


@frozen(eq=False)
class QuestionBatch:
    """Some encoded rows, padded to the longest.

    Attributes:
        inputs: The prompts, ``[batch, pos]``; the answer position of each is its last token.
        rows: Which of the encoded rows they are.
        encoded: The rows themselves.
        pad_token_id: What stands at padding.
        padding_side: ``left`` or ``right``.
    """

    inputs: ModelInputs
    rows: tuple[int, ...]
    encoded: tuple[EncodedRow, ...]
    pad_token_id: int
    padding_side: str

    @property
    def starts(self) -> Tensor:
        """Position of the first token of each prompt, ``[batch]``, int64."""
        return self.inputs.attention_mask.argmax(dim=-1)

    @property
    def corrupted(self) -> ModelInputs:
        """The corrupted prompts, ``[batch, pos]``, padded as the prompts are.

        Raises:
            DataError: A row has none.
        """
        rows = [row.corrupted for row in self.encoded if row.corrupted is not None]
        if len(rows) < len(self.encoded):
            first = next(i for i, row in zip(self.rows, self.encoded, strict=True) if row.corrupted is None)
            raise DataError(f"Row {first} has no corrupted prompt. Give one to every row that is patched.")
        return _padded(rows, self.pad_token_id, self.padding_side)

    def span(self, name: str) -> Points:
        """All tokens of a span in the batch, row by row.

        Raises:
            DataError: A row has no such span.
        """
        examples: list[int] = []
        positions: list[int] = []
        for i, (row, start) in enumerate(zip(self.encoded, self.starts.tolist(), strict=True)):
            if name not in row.spans:
                raise DataError(
                    f"Row {self.rows[i]} has no span {name!r}; its spans are {sorted(row.spans)}. Name it in every row."
                )
            found = range(start + row.spans[name][0], start + row.spans[name][1])
            examples += [i] * len(found)
            positions += found
        return Points(torch.tensor(examples), torch.tensor(positions))


@frozen(eq=False)
class AnsweredBatch:
    """Prompts, each followed by all but the last token of an answer.

    ``answered.points.of(logits)`` are the logits, ``[n, vocabulary]``, that predict ``answered.tokens``.

    Attributes:
        inputs: Prompts and answers, ``[batch, pos]``.
        points: Where each token of an answer is predicted: at the token before it. Row by row, ``[n]``.
        tokens: The token that is predicted there, ``[n]``.
    """

    inputs: ModelInputs
    points: Points
    tokens: Tensor


def batches(
    encoded: Sequence[EncodedRow],
    size: int,
    pad_token_id: int,
    padding_side: str = "left",
    sort_by_length: bool = False,
) -> Iterator[QuestionBatch]:
    """Pad encoded rows to batches.

    Args:
        encoded: The rows.
        size: Rows in a batch; the last one may have fewer.
        pad_token_id: What stands at padding. The attention mask tells it from tokens, whichever it is.
        padding_side: ``left`` or ``right``.
        sort_by_length: Put rows of similar lengths together, the longest first, so that there is little padding and
            the batch that needs most memory comes first. Otherwise rows keep their order.

    Raises:
        ConfigurationError: The size, the padding token or the side is none.
    """
    if type(size) is not int or size < 1:
        raise ConfigurationError(f"The size of batches is {size!r}; give the number of rows, 1 or more.")
    if type(pad_token_id) is not int or pad_token_id < 0:
        raise ConfigurationError(
            f"The token for padding is {pad_token_id!r}; give its id. Where a tokenizer has none, that of any other "
            "token does, such as tokenizer.eos_token_id."
        )
    if padding_side not in SIDES:
        raise ConfigurationError(f"The padding side is {padding_side!r}; it is one of {SIDES}.")
    order = list(range(len(encoded)))
    if sort_by_length:
        order.sort(key=lambda i: -len(encoded[i].tokens))
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    return (_batch([encoded[i] for i in group], group, pad_token_id, padding_side) for group in groups)


def with_answers(batch: QuestionBatch, which: int | Sequence[int] | None = None) -> AnsweredBatch:
    """Let an answer follow each prompt of a batch, to find the probability of all its tokens in one run.

    Args:
        batch: The batch.
        which: Index of the answer, for all rows or for each; None: the correct one of each row.

    Raises:
        DataError: A row has no answer of that index.
    """
    chosen = _chosen(batch, which)
    prompts = [row.tokens for row in batch.encoded]
    texts = [
        torch.cat([prompt, prompt.new_tensor(answer[:-1])]) for prompt, answer in zip(prompts, chosen, strict=True)
    ]
    inputs = _padded(texts, batch.pad_token_id, batch.padding_side)
    examples = torch.repeat_interleave(torch.tensor([len(answer) for answer in chosen]))
    last = inputs.attention_mask.argmax(dim=-1) + torch.tensor([len(prompt) - 1 for prompt in prompts])
    further = torch.cat([torch.arange(len(answer)) for answer in chosen])
    tokens = torch.tensor([token for answer in chosen for token in answer])
    return AnsweredBatch(inputs, Points(examples, last[examples] + further), tokens)


def _chosen(batch: QuestionBatch, which: int | Sequence[int] | None) -> list[tuple[int, ...]]:
    if which is None:
        return [row.answers[row.correct] for row in batch.encoded]
    indices = list(which) if isinstance(which, Sequence) else [which] * len(batch.encoded)
    if len(indices) != len(batch.encoded):
        raise DataError(
            f"Answers are chosen for {len(indices)} rows of a batch of {len(batch.encoded)}. Give one index a row."
        )
    for index, row, i in zip(indices, batch.encoded, batch.rows, strict=True):
        if type(index) is not int or not 0 <= index < len(row.answers):
            raise DataError(
                f"Row {i} has no answer {shown(index)}; it has {len(row.answers)}, counted from 0: "
                f"{list(row.row.answers)}."
            )
    return [row.answers[index] for index, row in zip(indices, batch.encoded, strict=True)]


def _batch(encoded: Sequence[EncodedRow], rows: Sequence[int], pad_token_id: int, padding_side: str) -> QuestionBatch:
    inputs = _padded([row.tokens for row in encoded], pad_token_id, padding_side)
    return QuestionBatch(inputs, tuple(rows), tuple(encoded), pad_token_id, padding_side)


def _padded(rows: Sequence[Tensor], pad_token_id: int, padding_side: str) -> ModelInputs:
    def pad(tensors: Sequence[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(tensors), True, value, padding_side)

    return ModelInputs(pad(rows, pad_token_id), pad([torch.ones_like(row) for row in rows], 0))
