"""How logits of a batch of a session become the objective of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpretune.activations.finite import check_rows, rows_not_finite
from interpretune.errors import NotFiniteError
from interpretune.operations.objectives import LOGIT_DIFF, Objective, Outcome, log_probs_of

if TYPE_CHECKING:
    from interpretune.session.module import ITModule

RULED_OUT = (
    "Does the model rule out one of the answers (a logit of minus infinity), or does the module's standardize_logits "
    "divide by zero? Choose other answers, or mend it."
)


class Measure:
    """The objective of rows of a batch, from logits at their answer positions.

    The logits of the answers are what the module makes of all logits, or, where rows of the batch bring their own
    answers, those of their tokens. Of an objective that reads the vocabulary, log-probabilities stand for logits.

    Attributes:
        columns: Ids of the only logits that are needed, ``[c]``; None: all are.
    """

    def __init__(
        self,
        module: ITModule,
        batch: Mapping[str, Any] | None,
        labels: Tensor | None = None,
        objective: Objective = LOGIT_DIFF,
        clean: Tensor | None = None,
    ) -> None:
        """Measure rows of a batch.

        Args:
            module: Says what the answers are.
            batch: May hold the rows' own answers.
            labels: Index of the correct answer, ``[batch]``; None: nothing is measured, answers are read.
            objective: What is measured.
            clean: Logits of the clean run, ``[batch, vocab]``, for an objective that reads the vocabulary.
        """
        self._module, self._labels, self._objective = module, labels, objective
        self._ids = None if batch is None else module.differing_answers(batch)
        self._clean: Tensor | None = None
        self.columns: Tensor | None = None
        if objective.reads == "answers":
            self.columns = module.answer_columns if self._ids is None else module.columns_of(self._ids)
        elif clean is not None:
            self._clean = log_probs_of(clean)

    def answers(self, logits: Tensor, examples: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
        """Logits of the answers, ``[n, k]``; minus infinity where a row has fewer than ``k``.

        Args:
            logits: ``[n, c]``.
            examples: Row of the batch, ``[n]``; None: each once.
            columns: ``self.columns`` where ``logits`` are those only; None: they are of all tokens.

        Raises:
            NotFiniteError: One of them is NaN or infinite: a model that rules out an answer has no logit difference.
        """
        if self._ids is None:
            answers = self._module.standardize_logits(logits)[:, -1, :] if columns is None else logits
            found = answers
        else:
            ids = self._ids if examples is None else self._ids[examples]
            if columns is None:
                answers = self._module.standardize_logits(logits, ids)[:, -1, :]
            else:
                answers = logits.gather(-1, torch.searchsorted(columns, ids.where(ids >= 0, ids[:, :1])))
                answers = answers.masked_fill(ids < 0, -torch.inf)
            found = answers.masked_fill(ids < 0, 0)
        if not bool(found.detach().isfinite().all()):
            raise NotFiniteError("Logits of the answers", rows_not_finite(found), RULED_OUT)
        return answers

    def __call__(self, logits: Tensor, examples: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
        """The objective, ``[n]``, with gradient; the arguments are those of ``answers``.

        Raises:
            NotFiniteError: It is NaN or infinite.
        """
        assert self._labels is not None, "it measures"
        which = torch.arange(len(logits), device=logits.device) if examples is None else examples
        log_probs, clean = None, None
        if self._objective.reads == "vocabulary":
            log_probs = logits = log_probs_of(logits)
            clean = log_probs.detach() if self._clean is None else self._clean[which]
        answers = self.answers(logits, which, columns)
        found = self._objective.measure(Outcome(answers, self._labels[which], log_probs, clean))
        check_rows(found, f"The objective {self._objective.name}", RULED_OUT)
        return found
