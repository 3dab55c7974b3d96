"""What a model runs for rows of a question: the prompt, or the prompt with each of its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from attrs import evolve, frozen
from torch import Tensor

from interpretune.activations.inputs import ModelInputs, Points
from interpretune.questions.encoding import EncodedRow

_Told = tuple[int, int, list[int], tuple[int, ...], int]
"""Row, answer, tokens of the sequence, tokens of the answer, and how many are the prompt's."""


@frozen(eq=False)
class Sequences:
    """Padded sequences of a batch of rows.

    Where every answer is one token, one sequence for each row: its prompt. Else one for each row and answer: the prompt
    and all tokens of the answer but the last.

    Attributes:
        inputs: ``[s, pos]``.
        rows: Row of each sequence, ascending, ``[s]``.
        answers: Answer of each sequence, ``[s]``; 0 where there is one sequence for each row.
        first: Slot of the first token of each sequence, ``[s]``.
        lengths: Tokens of the prompt of each sequence, ``[s]``.
        tokens: Tokens of its answer, ``[s, w]``, -1 beyond the last; none where answers are one token.
    """

    inputs: ModelInputs
    rows: Tensor
    answers: Tensor
    first: Tensor
    lengths: Tensor
    tokens: Tensor

    @classmethod
    def of(
        cls,
        rows: Sequence[EncodedRow],
        pad: int,
        side: str,
        device: torch.device,
        counted: Callable[[EncodedRow], range] | None = None,
    ) -> Sequences:
        """The sequences of rows.

        Args:
            rows: The rows.
            pad: The padding token.
            side: ``left`` or ``right``.
            device: Of the model.
            counted: Of each row the tokens that are measured, of prompt and correct answer together: these stand for
                its only answer; None: the answers are measured.
        """
        if counted is not None:
            told: list[_Told] = []
            for i, row in enumerate(rows):
                whole, at = [*row.tokens.tolist(), *(row.answers[row.correct] if row.answers else ())], counted(row)
                run = whole[: max(len(row.tokens), len(whole) - 1)]
                told.append((i, 0, run, tuple(whole[at.start : at.stop]), at.start))
        elif all(len(ids) == 1 for row in rows for ids in row.answers):
            told = [(i, 0, row.tokens.tolist(), (), len(row.tokens)) for i, row in enumerate(rows)]
        else:
            told = [
                (i, j, [*row.tokens.tolist(), *ids[:-1]], ids, len(row.tokens))
                for i, row in enumerate(rows)
                for j, ids in enumerate(row.answers or [()])
            ]
        inputs, first = padded([torch.tensor(tokens) for _, _, tokens, _, _ in told], pad, side, device)
        width = max((len(ids) for _, _, _, ids, _ in told), default=0)
        columns = [
            [i for i, *_ in told],
            [j for _, j, *_ in told],
            [length for *_, length in told],
        ]
        owner, answers, lengths = (torch.tensor(column, dtype=torch.long, device=device) for column in columns)
        tokens = [[*ids, *[-1] * (width - len(ids))] for _, _, _, ids, _ in told]
        inputs = evolve(inputs, prompt_ends=first + torch.tensor([len(rows[i].tokens) for i, *_ in told]).to(first) - 1)
        return cls(
            inputs, owner, answers, first, lengths, torch.tensor(tokens, device=device).reshape(len(told), width)
        )

    @property
    def several(self) -> bool:
        """Whether there is a sequence for each answer."""
        return self.tokens.shape[1] > 0

    @property
    def wanted(self) -> Tensor:
        """Slots whose logits say what the objective reads, ``[s, w]``: of the token before each token of the answer."""
        steps = torch.arange(max(self.tokens.shape[1], 1), device=self.tokens.device)
        within = torch.minimum(steps, ((self.tokens >= 0).sum(-1, keepdim=True) - 1).clamp(min=0))
        return (self.first + self.lengths - 1).unsqueeze(-1) + within

    @property
    def wanted_points(self) -> Points:
        """The same as points, ``[s * w]``."""
        wanted = self.wanted
        return Points(torch.arange(len(wanted)).to(wanted).repeat_interleave(wanted.shape[1]), wanted.flatten())

    def points(self, rows: Tensor, positions: Tensor) -> tuple[Points, Tensor]:
        """Points of the batch in all sequences of their rows.

        Args:
            rows: Row of each point, ``[p]``.
            positions: Token of the prompt, ``[p]``.

        Returns:
            The points of the sequences, those of one point together, and of each the point it is, ``[m]``.
        """
        which, sequences = (rows.unsqueeze(-1) == self.rows).nonzero().unbind(-1)
        return Points(sequences, self.first[sequences] + positions[which]), which


def padded(rows: Sequence[Tensor], pad: int, side: str, device: torch.device) -> tuple[ModelInputs, Tensor]:
    """Rows of tokens as a batch, and the slot of the first token of each, ``[n]``."""
    longest = max(map(len, rows))
    first = torch.tensor([longest - len(row) if side == "left" else 0 for row in rows], device=device)
    tokens = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for i, (row, start) in enumerate(zip(rows, first.tolist(), strict=True)):
        tokens[i, start : start + len(row)] = row
        mask[i, start : start + len(row)] = 1
    return ModelInputs(tokens.to(device), mask.to(device)), first
