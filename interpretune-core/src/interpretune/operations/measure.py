"""How logits of a batch become the logits of its answers, and the objective of its rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.finite import check_rows, rows_not_finite
from interpretune.errors import NotFiniteError
from interpretune.models.answer_tokens import logits_of
from interpretune.operations.objectives import LOGIT_DIFF, Objective, Outcome, log_probs_of

RULED_OUT = (
    "Does the model rule out one of the answers (a logit of minus infinity), or does the module's standardize_logits "
    "divide by zero? Choose other answers, or mend it."
)


@frozen(eq=False)
class AnswerReader:
    """Reads the logits of a batch's answers. ``AnswerReader.of`` makes one of their tokens.

    Attributes:
        ids: Token of each answer of each row, ``[batch, k]``, -1 where a row has fewer; None: all rows have the same.
        columns: Ids of the only logits that are needed, ``[c]``, where all rows have the same those of the answers in
            their order; None: all are.
        reduce: Gives the logits of the answers, ``[n, k]``, of logits ``[n, vocab]`` and the ``ids`` of these rows.
    """

    ids: Tensor | None
    columns: Tensor | None
    reduce: Callable[[Tensor, Tensor | None], Tensor]

    @classmethod
    def of(cls, ids: Tensor) -> AnswerReader:
        """Read the logits of tokens, ``[batch, k]``, -1 where a row has fewer than ``k`` answers."""
        return cls(ids, ids[ids >= 0].unique(), lambda logits, own: logits_of(logits, ids if own is None else own))

    def read(self, logits: Tensor, examples: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
        """Logits of the answers, ``[n, k]``; minus infinity where a row has fewer than ``k``.

        Args:
            logits: ``[n, c]``.
            examples: Row of the batch, ``[n]``; None: each once.
            columns: ``self.columns`` where ``logits`` are those only; None: they are of all tokens.

        Raises:
            NotFiniteError: One of them is NaN or infinite: a model that rules out an answer has no logit difference.
        """
        ids = self.ids if self.ids is None or examples is None else self.ids[examples]
        if columns is None:
            answers = self.reduce(logits, ids)
        elif ids is None:
            answers = logits
        else:
            answers = logits.gather(-1, torch.searchsorted(columns, ids.where(ids >= 0, ids[:, :1])))
            answers = answers.masked_fill(ids < 0, -torch.inf)
        found = answers if ids is None else answers.masked_fill(ids < 0, 0)
        if not bool(found.detach().isfinite().all()):
            raise NotFiniteError("Logits of the answers", rows_not_finite(found), RULED_OUT)
        return answers


class Measure:
    """The objective of rows of a batch, from logits at their answer positions.

    Of an objective that reads the vocabulary, log-probabilities stand for logits.

    Attributes:
        columns: Ids of the only logits that are needed, ``[c]``; None: all are.
    """

    def __init__(
        self, reader: AnswerReader, labels: Tensor, objective: Objective = LOGIT_DIFF, clean: Tensor | None = None
    ) -> None:
        """Measure rows of a batch.

        Args:
            reader: Knows the answers.
            labels: Index of the correct answer, ``[batch]``.
            objective: What is measured.
            clean: Logits of the clean run, ``[batch, vocab]``, for an objective that reads the vocabulary.
        """
        self._reader, self._labels, self._objective = reader, labels, objective
        narrow = objective.reads == "answers"
        self._clean = None if narrow or clean is None else log_probs_of(clean)
        self.columns = reader.columns if narrow else None

    def __call__(self, logits: Tensor, examples: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
        """The objective, ``[n]``, with gradient; the arguments are those of ``AnswerReader.read``.

        Raises:
            NotFiniteError: It is NaN or infinite.
        """
        which = torch.arange(len(logits), device=logits.device) if examples is None else examples
        log_probs, clean = None, None
        if self._objective.reads == "vocabulary":
            log_probs = logits = log_probs_of(logits)
            clean = log_probs.detach() if self._clean is None else self._clean[which]
        answers = self._reader.read(logits, which, columns)
        found = self._objective.measure(Outcome(answers, self._labels[which], log_probs, clean))
        check_rows(found, f"The objective {self._objective.name}", RULED_OUT)
        return found
