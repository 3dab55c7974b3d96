"""Which tokens of rows something is about: those of a prompt at which units are changed, those that are measured."""

from __future__ import annotations

from collections.abc import Callable

from interpretune.errors import DataError
from interpretune.operations.objectives import Objective
from interpretune.questions.encoding import EncodedRow


def prompt_tokens(row: EncodedRow, number: int, where: str, argument: str, also: str = "") -> range:
    """Tokens of a prompt: ``answer`` is the last, ``each`` all of them, and a span has its own.

    Args:
        row: The row.
        number: Its number, for errors.
        where: Which tokens.
        argument: What chose them, for errors.
        also: What else could be chosen, for errors.

    Raises:
        DataError: The row has no such span.
    """
    if where == "answer":
        return range(len(row.tokens) - 1, len(row.tokens))
    if where == "each":
        return range(len(row.tokens))
    if where not in row.spans:
        told = f"the spans {', '.join(row.spans)}" if row.spans else "no spans"
        raise DataError(
            f"{argument} is {where!r}, and row {number} has {told}. Give {also}'answer', 'each', or the name of a span "
            "that all rows have."
        )
    return range(*row.spans[where])


def measured_tokens(objective: Objective) -> Callable[[EncodedRow], range] | None:
    """The tokens of a row, prompt and correct answer, that an objective measures; None: the answers are measured."""
    if objective.reads != "row":
        return None
    span = getattr(objective, "span", None)

    def tokens(row: EncodedRow) -> range:
        if span is not None and span not in row.spans:
            raise DataError(f"The objective is {objective.name}, and {row.row.told} has no span {span!r}.")
        end = len(row.tokens) + (len(row.answers[row.correct]) if row.answers else 0)
        found = range(max(1, row.spans[span][0]), row.spans[span][1]) if span is not None else range(1, end)
        if not found:
            raise DataError(f"The objective is {objective.name}, and {row.row.told} has no token to predict.")
        return found

    return tokens
