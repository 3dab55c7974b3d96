"""The capital of a country: answers that differ from row to row."""

from __future__ import annotations

from collections.abc import Iterator

from interpretune.questions import PromptRow
from interpretune.tasks.task import Part, Task
from interpretune.tasks.templates import row_of, words_of

OTHERS = 6
"""Other countries with each of which a country is compared."""


def make(part: Part) -> Iterator[PromptRow]:
    """Rows of every country, compared with others; the corrupted prompt names the other country."""
    words = words_of("capitals", part)
    capitals = list(words["capitals"].items())
    for i, (country, capital) in enumerate(capitals):
        for j in range(1, OTHERS + 1):
            other, other_capital = capitals[(i + j) % len(capitals)]
            correct = (i + j) % 2
            answers = (f" {capital}", f" {other_capital}") if correct == 0 else (f" {other_capital}", f" {capital}")
            template = words["templates"][j % len(words["templates"])]
            yield row_of(template, {"country": country}, {"country": other}, answers, correct)


task = Task(
    "capitals",
    'The capital of a country: "The capital of France is the city of" is followed by " Paris", not by the capital of '
    "another country.",
    make,
)
