"""How often each answer is given, and for which label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from interpretune.analysis.cache import AnalysisCache
from interpretune.analysis.finite_results import check_stored
from interpretune.errors import AnalysisError
from interpretune.system.html_table import html_table


@frozen(eq=False)
class AnswerCounts:
    """Predicted answers by correct answer.

    A model that answers "Yes" to everything is right on half of balanced rows; only this table shows it.

    Attributes:
        names: The answers by label.
        counts: Examples with the correct answer of the row and the predicted answer of the column,
            ``[answer, answer]``.
    """

    names: tuple[str, ...]
    counts: Tensor

    @property
    def given(self) -> Tensor:
        """How often each answer is predicted, ``[answer]``."""
        return self.counts.sum(dim=0)

    @property
    def labels(self) -> Tensor:
        """How often each answer is correct, ``[answer]``."""
        return self.counts.sum(dim=1)

    def _repr_html_(self) -> str:
        return html_table("Answers by correct answer", self.as_rows())

    def as_rows(self) -> list[dict[str, Any]]:
        """For tables: a row for each correct answer, and one for all examples."""
        rows = [*zip(map(repr, self.names), self.counts.tolist(), strict=True), ("all", self.given.tolist())]
        return [
            {
                "correct answer": name,
                "rows": sum(counts),
                **{f"answered {answer!r}": n for answer, n in zip(self.names, counts, strict=True)},
            }
            for name, counts in rows
        ]


def count_answers(analysis_cache: AnalysisCache, answers: Sequence[str] = ()) -> AnswerCounts:
    """Count how often each answer is given, and for which label.

    Args:
        analysis_cache: Results of any mode.
        answers: The answer words by label; empty: those that the results know, else their numbers.

    Raises:
        AnalysisError: The cache is empty, its logits are not finite, or there are fewer words than answers.
    """
    if not analysis_cache.batches:
        raise AnalysisError("The cache is empty: run the analysis first.")
    check_stored(analysis_cache, "logit_diffs")
    labels, predictions = torch.cat(analysis_cache.orig_labels), torch.cat(analysis_cache.preds)
    names = tuple(answers or analysis_cache.answers)
    n = int(max(labels.max(), predictions.max())) + 1
    if names and len(names) < n:
        raise AnalysisError(f"The results have the answer {n - 1}, and there are {len(names)} words: {list(names)}.")
    names = names or tuple(f"answer {label}" for label in range(max(n, 2)))
    counts = torch.bincount(labels * len(names) + predictions, minlength=len(names) ** 2)
    return AnswerCounts(names, counts.reshape(len(names), len(names)))
