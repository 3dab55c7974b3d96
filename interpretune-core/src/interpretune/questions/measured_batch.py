"""The clean run of a batch, its objective, and the objective of rows in which units are changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interpretune.activations.finite import check_rows
from interpretune.activations.inputs import ModelInputs
from interpretune.backends.backend import AnalysisBackend
from interpretune.latents.latent_model import LatentModel
from interpretune.questions.objectives import Objective, Outcome
from interpretune.replay.gradients import attribute
from interpretune.replay.rows import LatentRows

MOST_LOGITS = 2**26
"""Logits of changed rows that are in memory at a time; of a vocabulary of 50,000, those of some 1,300 rows."""


class MeasuredBatch:
    """A batch of rows whose answers are one token each, run once.

    Attributes:
        prefill: The clean run, dictionaries spliced in.
        clean: The objective of each row in it, ``[batch]``.
        answers: What the objective reads of each answer in it, ``[batch, k]``.
    """

    def __init__(
        self,
        backend: AnalysisBackend,
        dictionaries: Sequence[LatentModel],
        inputs: ModelInputs,
        answers: Sequence[Sequence[int]],
        correct: Sequence[int],
        objective: Objective,
        row_budget: int | None = None,
    ) -> None:
        """Run the batch.

        Args:
            backend: Runs the model.
            dictionaries: Spliced in together.
            inputs: The batch.
            answers: Tokens of the answers of each row.
            correct: Index of the correct one.
            objective: What is measured.
            row_budget: Most changed rows that run at a time; None: chosen from the free memory.
        """
        self._backend, self._objective, self._row_budget = backend, objective, row_budget
        device = inputs.tokens.device
        most = max(map(len, answers), default=0)
        padded = torch.tensor([[*ids, *[-1] * (most - len(ids))] for ids in answers], device=device).reshape(-1, most)
        self._there = padded >= 0
        self._correct = torch.tensor(correct, device=device)
        columns, places = padded.clamp(min=0).unique(return_inverse=True)
        self._columns: Tensor | None = columns if objective.reads == "answers" else None
        self._places = places.reshape(padded.shape) if objective.reads == "answers" else padded.clamp(min=0)
        self.prefill = backend.prefill(inputs, dictionaries)
        self._clean_logits = self.prefill.logits if self._columns is None else self.prefill.logits[:, self._columns]
        everywhere = torch.arange(len(inputs), device=device)
        self.answers = self._outcome(self._clean_logits, everywhere).answers
        self.clean = self._measure(self._clean_logits, everywhere)

    def changed(self, rows: LatentRows) -> Tensor:
        """The objective of rows in which latents are set at the answer position, ``[n]``."""
        found = []
        width = self._backend.vocab_size if self._columns is None else max(len(self._columns), 1)
        for chunk in torch.arange(len(rows), device=rows.points.device).split(max(1, MOST_LOGITS // width)):
            part = rows.select(chunk)
            logits = self._backend.ablate(self.prefill, part, self._columns, self._row_budget)
            found.append(self._measure(logits, part.points))
        return torch.cat(found) if found else self.clean[:0]

    def gradients(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Gradients of the objective with respect to latents at the answer positions, ``[batch, d_sae]`` by name."""
        if self.prefill.kept is not None:
            return attribute(
                self.prefill, lambda logits, points: self._measure(logits, points).sum(), names, self._columns
            )
        models, everywhere = list(self.prefill.latent_models.values()), torch.arange(len(self.clean))

        def objective(logits: Tensor) -> Tensor:
            wanted = logits if self._columns is None else logits[:, self._columns]
            return self._measure(wanted, everywhere.to(logits.device)).sum()

        _, found = self._backend.gradients(self.prefill.inputs, models, objective, names)
        return {name: self.prefill.points.of(values) for name, values in found.items()}

    def _outcome(self, logits: Tensor, examples: Tensor) -> Outcome:
        clean = log_probs = None
        read = logits
        if self._objective.reads == "vocabulary":
            read = log_probs = log_probs_of(logits)
            clean = log_probs_of(self._clean_logits)[examples]
        answers = read.gather(-1, self._places[examples]).masked_fill(~self._there[examples], -torch.inf)
        return Outcome(answers, self._correct[examples], log_probs, clean)

    def _measure(self, logits: Tensor, examples: Tensor) -> Tensor:
        found = self._objective.measure(self._outcome(logits, examples))
        reason = "The logits are finite: look at the objective, and at whether the model rules out an answer."
        check_rows(found.detach(), f"The objective {self._objective.name}", reason, examples)
        return found


def log_probs_of(logits: Tensor) -> Tensor:
    """Log-probabilities over the last axis, in float32 at least."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
