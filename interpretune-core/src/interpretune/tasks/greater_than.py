"""Greater-than: what ends does so after it began."""

from __future__ import annotations

import random
from collections.abc import Iterator

from interpretune.questions import PromptRow
from interpretune.tasks.task import Part, Task
from interpretune.tasks.templates import row_of, words_of

STEP = 10
"""Both answers differ from the year in their tens, so that tokenizers that cut years into digits tell them apart at the
first one, as others do at the first token of two digits."""
YEARS = [
    (year - step, year, year + step)
    for year in range(20, 90)
    for step in range(STEP, 50, STEP)
    if year - step >= 10 and year + step <= 99
]
"""Without their century: an earlier year, that of the beginning, a later year."""
ROWS_OF_CENTURY = 4
"""For each event."""
FIRST_YEAR = "01"
"""Of the corrupted prompt, after which both answers are years that are possible."""


def make(part: Part) -> Iterator[PromptRow]:
    """Rows of every event, century, with four years each.

    The answers are as many tens of years after the beginning and before it; the first is correct. The corrupted
    prompt begins in the first year of the century.
    """
    words = words_of("greater_than", part)
    draw = random.Random(part)  # noqa: S311 - no secret depends on it
    i = 0
    for event in words["events"]:
        for century in words["centuries"]:
            left_out = {year - 100 * century for year in words["left_out"]}
            possible = [years for years in YEARS if not left_out & {*years}]
            for earlier, year, later in draw.sample(possible, ROWS_OF_CENTURY):
                row = {"event": event, "year": f"{century}{year}", "century": str(century)}
                correct = i % 2
                answers = (str(later), str(earlier)) if correct == 0 else (str(earlier), str(later))
                template = words["templates"][i // 2 % len(words["templates"])]
                yield row_of(template, row, {"year": f"{century}{FIRST_YEAR}"}, answers, correct)
                i += 1


task = Task(
    "greater_than",
    'Greater-than: "The war lasted from the year 1732 to the year 17" is followed by a later year, "52", not by an '
    'earlier one, "12".',
    make,
)
