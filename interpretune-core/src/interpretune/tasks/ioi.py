"""Indirect object identification: of two names, the one that is not repeated is the one to whom something is given."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import permutations

from interpretune.questions import PromptRow
from interpretune.tasks.task import Part, Task
from interpretune.tasks.templates import row_of, words_of


def make(part: Part) -> Iterator[PromptRow]:
    """Rows of every ordered pair of names, once with the indirect object before the subject and once after it.

    The corrupted prompt has a third name in place of the subject's second mention, so that no name is repeated.
    """
    words = words_of("ioi", part)
    names = words["names"]
    draw = random.Random(part)  # noqa: S311 - no secret depends on it
    for i, (io, subject) in enumerate(permutations(names, 2)):
        third = draw.choice([name for name in names if name not in (io, subject)])
        row = {"io": io, "s1": subject, "s2": subject}
        row |= {kind: draw.choice(words[f"{kind}s"]) for kind in ("place", "object")}
        template = draw.choice(words["templates"])
        for pair in ("{io} and {s1}", "{s1} and {io}"):
            correct = (i + (pair == "{io} and {s1}")) % 2
            answers = (f" {io}", f" {subject}") if correct == 0 else (f" {subject}", f" {io}")
            yield row_of(template.replace("{pair}", pair), row, {"s2": third}, answers, correct)


task = Task(
    "ioi",
    'Indirect object identification: after "Anna and Peter met, Peter gave a letter to" comes the name that is not '
    "repeated.",
    make,
)
