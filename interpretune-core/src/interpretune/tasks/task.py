"""A task: a question with rows of its own."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import chain, zip_longest
from typing import Literal

from attrs import field, frozen, validators

from interpretune.errors import DataError
from interpretune.questions import PromptRow

Part = Literal["training", "held_out"]
"""``training``: rows to train latent models or probes on, and to choose with; ``held_out``: rows for final figures."""


@frozen
class Task:
    """A question that is ready to ask.

    Attributes:
        name: Its name, the same as that of its entry point.
        about: One sentence: what is asked, and of which words.
        make: Makes all rows of a part, the same ones each time; called when rows are asked for. The words in which rows
            of ``held_out`` differ from each other occur in no row of ``training``.
        remote: Whether rows are downloaded; lists then show none.
    """

    name: str = field(validator=validators.and_(validators.instance_of(str), validators.min_len(1)))
    about: str = field(validator=validators.instance_of(str))
    make: Callable[[Part], Iterable[PromptRow]] = field(validator=validators.is_callable(), repr=False)
    remote: bool = False

    def training(self, n: int | None = None, seed: int = 0) -> list[PromptRow]:
        """Rows to train on: see ``held_out`` for the arguments and errors."""
        return self._drawn("training", n, seed)

    def held_out(self, n: int | None = None, seed: int = 0) -> list[PromptRow]:
        """Rows in other words than those of ``training``, in random order.

        The correct answers come in turn: among the first rows, each index of a correct answer occurs as often as any
        other, up to one, until the rows of one are used up.

        Args:
            n: How many; None: all.
            seed: Which ones come first.

        Raises:
            DataError: There are fewer than ``n`` rows, or the rows cannot be made.
        """
        return self._drawn("held_out", n, seed)

    def _drawn(self, part: Part, n: int | None, seed: int) -> list[PromptRow]:
        rows = self._made(part)
        if n is not None and not 0 < n <= len(rows):
            raise DataError(f"The task {self.name!r} has {len(rows)} rows of {part}; {n} are asked for.")
        random.Random(seed).shuffle(rows)  # noqa: S311 - no secret depends on it
        by_answer: dict[int, list[PromptRow]] = defaultdict(list)
        for row in rows:
            by_answer[row.correct].append(row)
        in_turn = chain.from_iterable(zip_longest(*(by_answer[index] for index in sorted(by_answer))))
        return [row for row in in_turn if row is not None][:n]

    def _made(self, part: Part) -> list[PromptRow]:
        try:
            rows = list(self.make(part))
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"The rows of {part} of the task {self.name!r} cannot be made: {type(error).__name__}: {error}"
            ) from error
        if wrong := next((row for row in rows if not isinstance(row, PromptRow)), None):
            raise DataError(f"The task {self.name!r} makes a {type(wrong).__name__} where a PromptRow is expected.")
        return rows
