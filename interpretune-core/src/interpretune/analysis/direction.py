"""Towards which answer effects count: each example's correct one, or one that is the same for all examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor

from interpretune.errors import AnalysisError
from interpretune.operations.objectives import LOGIT_DIFF
from interpretune.store.values import LatentValues

CORRECT = "correct"
"""Effects are stored towards the correct answer of each example."""


@frozen
class Direction:
    """The answer towards which effects count: above 0 where the latent pushes towards it.

    Effects are stored towards the correct answer. On balanced rows a latent that pushes towards one answer everywhere
    then has a total near 0. With two answers a push towards one is a push away from the other, so that the effect
    towards an answer is the stored one where that answer is correct, and its negative elsewhere.

    Attributes:
        label: Label of the answer; None: the correct answer of each example.
        name: For titles: the answer in quotation marks, or ``the correct answer``.
    """

    label: int | None = None
    name: str = "the correct answer"

    def signs(self, labels: Tensor) -> Tensor:
        """1 where effects are as stored and -1 where they are turned round, ``[n]``, float64.

        Args:
            labels: Correct answers, ``[n]``.

        Raises:
            AnalysisError: There are labels of more than two answers.
        """
        if self.label is None:
            return torch.ones(len(labels), dtype=torch.float64)
        if other := sorted({int(label) for label in labels.unique()} - {0, 1}):
            raise AnalysisError(
                f"Effects towards {self.name} follow from effects towards the correct answer where there are two "
                f"answers; these examples have the label {other[0]}. Use towards={CORRECT!r}."
            )
        return torch.where(labels.cpu() == self.label, 1.0, -1.0).double()

    def of(self, effects: Mapping[str, LatentValues], labels: Tensor) -> Mapping[str, LatentValues]:
        """Stored effects of a batch, by activation name, as effects towards this answer.

        Args:
            effects: Towards the correct answer, ``[batch, n_alive]`` each.
            labels: Correct answers, ``[batch]``.
        """
        if self.label is None:
            return effects
        signs = self.signs(labels).unsqueeze(-1)
        return {
            name: LatentValues(item.latents, item.values * signs.to(item.values), item.d_sae)
            for name, item in effects.items()
        }

    @property
    def suffix(self) -> str:
        """What titles add: nothing for the correct answer."""
        return "" if self.label is None else f" towards {self.name}"


TOWARDS_CORRECT = Direction()


def direction_of(towards: str | int, answers: Sequence[str] = (), objective: str = LOGIT_DIFF.name) -> Direction:
    """The direction that a user asks for.

    Args:
        towards: ``"correct"``, or an answer: its label, or its word, with or without its leading space.
        answers: The answer words by label, where they are known.
        objective: What the effects are measured by.

    Raises:
        AnalysisError: There is no such answer, there are more than two, or the effects are no differences of logits: a
            loss of probability of one answer does not say which answer gains.
    """
    if towards == CORRECT:
        return TOWARDS_CORRECT
    if objective != LOGIT_DIFF.name:
        raise AnalysisError(
            f"Effects towards one answer follow from effects on the difference of two logits; these are on {objective}."
            f" Use towards={CORRECT!r}, or measure by logit_diff."
        )
    if answers and len(answers) != 2:
        raise AnalysisError(
            f"Effects towards one answer are defined for two answers; this task has {len(answers)}: {list(answers)}. "
            f"Use towards={CORRECT!r}."
        )
    if isinstance(towards, int) and not isinstance(towards, bool) and towards in (0, 1):
        return Direction(towards, repr(answers[towards]) if answers else f"answer {towards}")
    words = [label for label, answer in enumerate(answers) if answer == towards]
    alike = [label for label, answer in enumerate(answers) if answer.strip() == str(towards).strip()]
    found = words or alike
    if len(found) != 1:
        known = f"one of {list(answers)}, " if answers else "(these results do not say how their answers are spelt) "
        raise AnalysisError(f"towards={towards!r} is no answer. Give {CORRECT!r}, {known}or the label 0 or 1.")
    return Direction(found[0], repr(answers[found[0]]))
