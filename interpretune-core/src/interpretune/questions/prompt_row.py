"""A row of a question: a prompt, its answers, and which of them is correct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import field, frozen

from interpretune.errors import DataError

Prompt = str | Sequence[Mapping[str, str]]
"""A text, or chat messages with ``role`` and ``content``, which go through the tokenizer's chat template."""
Span = str | tuple[int, int]
"""A part of a prompt: its text, which must occur there once, or its first character and the one after its last."""


@frozen
class PromptRow:
    """One prompt and what may follow it.

    Attributes:
        prompt: A text, or chat messages.
        answers: Texts that may follow, with the space before them that the model would write.
        correct: Index of the correct one.
        corrupted: Another prompt with as many tokens, whose activations are put into the run of this one.
        spans: Parts of the prompt by name, from which token positions follow.
    """

    prompt: Prompt = field()
    answers: tuple[str, ...] = field(converter=tuple[str, ...])
    correct: int = 0
    corrupted: Prompt | None = None
    spans: Mapping[str, Span] = field(factory=dict)

    @answers.validator
    def _check_answers(self, _: object, value: tuple[str, ...]) -> None:
        if not value or not all(isinstance(item, str) and item for item in value):
            raise DataError(
                f"The answers of {self.told} are {list(value)}; give at least one text, none of them empty."
            )

    def __attrs_post_init__(self) -> None:
        if type(self.correct) is not int or not 0 <= self.correct < len(self.answers):
            raise DataError(
                f"The correct answer of {self.told} is {self.correct!r}, which is the index of none of its "
                f"{len(self.answers)} answers {list(self.answers)}."
            )

    @property
    def told(self) -> str:
        """The prompt in an error: its end, where the answer follows."""
        last = self.prompt if isinstance(self.prompt, str) else [{}, *self.prompt][-1].get("content", "")
        return f"the row {last if len(last) <= 60 else '...' + last[-57:]!r}"
