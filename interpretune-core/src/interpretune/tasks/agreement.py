"""Agreement of a verb with its subject, across a noun that may be of the other number."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from interpretune.questions import PromptRow
from interpretune.tasks.task import Part, Task
from interpretune.tasks.templates import row_of, words_of

TEMPLATE = "The {subject} {preposition} the {attractor}"
ANSWERS = (" are", " is")
ATTRACTORS_OF_SUBJECT = 3
"""Of each number, in rows of one subject."""


def make(part: Part) -> Iterator[PromptRow]:
    """Rows of every subject in both numbers, with attractors of both numbers.

    The corrupted prompt has the subject in the other number.
    """
    words = words_of("agreement", part)
    attractors, prepositions = words["attractors"], words["prepositions"]
    for i, subject in enumerate(words["subjects"]):
        for plural, attractor_plural, j in product((True, False), (True, False), range(ATTRACTORS_OF_SUBJECT)):
            attractor = attractors[(ATTRACTORS_OF_SUBJECT * i + j) % len(attractors)]
            forms = (f"{subject}s", subject) if plural else (subject, f"{subject}s")
            row = {
                "subject": forms[0],
                "preposition": prepositions[(i + j) % len(prepositions)],
                "attractor": f"{attractor}s" if attractor_plural else attractor,
            }
            yield row_of(TEMPLATE, row, {"subject": forms[1]}, ANSWERS, correct=0 if plural else 1)


task = Task(
    "agreement",
    "A verb agrees in number with its subject, not with the noun between them: "
    '"The keys near the cabinet" is followed by " are", not " is".',
    make,
)
