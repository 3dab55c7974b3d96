"""A row of a question: a prompt, its answers, and which of them is correct."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import Attribute, field, frozen

from interpretune.errors import DataError

Prompt = str | Sequence[Mapping[str, str]]
"""A text, or chat messages with ``role`` and ``content``, which go through the tokenizer's chat template."""
Span = str | tuple[int, int]
"""A part of a prompt: its text, which must occur there once, or its first character and the one after its last.

Characters of chat messages are those of the text that the chat template makes of them.
"""
LONGEST_SHOWN = 60
"""Characters of a prompt, or of a wrong value, that an error shows."""


def brief(value: object) -> str:
    """A value in an error, shortened."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def _end(prompt: Any) -> str:
    last = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return repr(last if len(last) <= LONGEST_SHOWN else f"...{last[3 - LONGEST_SHOWN :]}")


def is_prompt(value: object) -> bool:
    """Whether a value is a text or a sequence of chat messages, empty texts among them."""
    if isinstance(value, str):
        return _is_text(value)
    if not isinstance(value, Sequence) or not value:
        return False
    texts = [[one.get("role"), one.get("content")] if isinstance(one, Mapping) else [None] for one in value]
    return all(_is_text(text) for pair in texts for text in pair)


def _is_text(value: object) -> bool:
    """Whether a value is a text that tokenizers take: half of a pair of UTF-16 codes is none."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _check_prompt(_: object, attribute: Attribute[Any], value: object) -> None:
    if value is None and attribute.name == "corrupted":
        return
    if not is_prompt(value):
        raise DataError(
            f"The {'corrupted prompt' if attribute.name == 'corrupted' else 'prompt'} of a row is {brief(value)}; "
            "give a text, or chat messages: a list of mappings with a text for 'role' and one for 'content'."
        )


def _as_tuple(answers: Any) -> Any:
    one = isinstance(answers, str | bytes | Mapping) or not isinstance(answers, Iterable)
    return answers if one else tuple(answers)


def _as_spans(spans: Any) -> Any:
    if not isinstance(spans, Mapping):
        return spans
    return {
        name: tuple(span) if isinstance(span, Sequence) and not isinstance(span, str) else span
        for name, span in spans.items()
    }


def _is_span(span: object) -> bool:
    if isinstance(span, str):
        return _is_text(span) and bool(span)
    return isinstance(span, tuple) and len(span) == 2 and all(type(end) is int for end in span)


@frozen
class PromptRow:
    """One prompt and what may follow it.

    Attributes:
        prompt: A text, or chat messages.
        answers: Texts that may follow, with the space before them that the model would write; none for objectives that
            read none.
        correct: Index of the correct one.
        corrupted: Another prompt with as many tokens, whose activations are put into the run of this one.
        spans: Parts of the prompt by name, from which token positions follow.

    Raises:
        DataError: An attribute is none of these.
    """

    prompt: Prompt = field(validator=_check_prompt)
    answers: tuple[str, ...] = field(default=(), converter=_as_tuple)
    correct: int = 0
    corrupted: Prompt | None = field(default=None, validator=_check_prompt)
    spans: Mapping[str, Span] = field(factory=dict, converter=_as_spans)

    @answers.validator
    def _check_answers(self, _: object, value: object) -> None:
        if not isinstance(value, tuple) or not all(_is_text(item) and item for item in value):
            found = list(value) if isinstance(value, tuple) else value
            raise DataError(f"The answers of {self.told} are {brief(found)}; give a list of texts, none of them empty.")

    @spans.validator
    def _check_spans(self, _: object, value: object) -> None:
        if not isinstance(value, Mapping):
            raise DataError(f"The spans of {self.told} are {brief(value)}; give a mapping from a name to a part of it.")
        for name, span in value.items():
            if not isinstance(name, str) or not _is_span(span):
                raise DataError(
                    f"The span {name!r} of {self.told} is {brief(span)}; give a text of the prompt, or its first "
                    "character and the one after its last, such as (4, 9)."
                )

    def __attrs_post_init__(self) -> None:
        if type(self.correct) is not int or not 0 <= self.correct < max(len(self.answers), 1):
            raise DataError(
                f"The correct answer of {self.told} is {self.correct!r}, which is the index of none of its "
                f"{len(self.answers)} answers {list(self.answers)}. Count from 0, in their order."
            )

    @property
    def told(self) -> str:
        """The prompt in an error: its end, where the answer follows."""
        return f"the row {_end(self.prompt)}"
