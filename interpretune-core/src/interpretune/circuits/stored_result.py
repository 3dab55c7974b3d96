"""What results about circuits have in common: they are kept in the store of the effects that they are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray

from interpretune.circuits.unit_pool import UnitPool
from interpretune.errors import ConfigurationError, DataError, StoreError
from interpretune.evidence.gathering import held_out_rows, key_of
from interpretune.evidence.held_out import check_unseen
from interpretune.evidence.stored import key_of_facts, read_facts, write_facts
from interpretune.questions.encoding import EncodedRow
from interpretune.questions.question import Question
from interpretune.questions.result import Effects
from interpretune.store.store import AnalysisStore
from interpretune.system.html_table import html_table

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R", bound="CircuitResult")
Floats = NDArray[np.float64]


@frozen(eq=False, repr=False)
class CircuitResult:
    """A result that is kept in the store of effects, the last one of its kind.

    Attributes:
        objective: What is measured.
        unit: What it is counted in.
        value: What units are set to, as the question says it.
    """

    kind: ClassVar[str]
    """Of the result, for the table of the store."""

    objective: str
    unit: str
    value: str

    @classmethod
    def open(cls: type[R], folder: str | Path) -> R:
        """Read the result from the folder of the effects' store.

        Raises:
            StoreError: There is none, or it is damaged.
        """
        return cls.of(AnalysisStore.open(folder))

    @classmethod
    def of(cls: type[R], store: AnalysisStore) -> R:
        """The same of a store that is open, such as ``effects.store``."""
        found: R | None = read_facts(store, cls._table(), cls)
        if found is None:
            raise StoreError(f"{store} holds no {cls.__name__}.")
        return found

    @classmethod
    def once(
        cls: type[R], effects: Effects, question: Question, settings: Sequence[Any], compute: Callable[[], R]
    ) -> R:
        """The result with these settings from the store of the effects; else it is computed, and kept there.

        In memory nothing is taken from the store.
        """
        store = effects.store
        with question.held(), torch.no_grad():
            key = "" if store.folder is None else key_of(question, settings)
            if not key or key_of_facts(store, cls._table(), cls) != key:
                found = compute()
                write_facts(store, cls._table(), key, found)
                return found
            return cls.of(store)

    @classmethod
    def _table(cls) -> str:
        return f"circuit_{cls.kind}"

    def to_pandas(self) -> pd.DataFrame:
        """The result as a table."""
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self!r}\n\n{self.to_pandas().head(20).to_string(index=False, float_format='{:.4g}'.format)}"

    def _repr_html_(self) -> str:
        return html_table(repr(self), self.to_pandas().to_dict("records"))


def told_of(question: Question) -> dict[str, Any]:
    """The attributes of every result."""
    value = question.value
    told = str(value) if isinstance(value, (str, int, float)) else "given numbers"
    return {"objective": question.objective.name, "unit": question.objective.unit, "value": told}


def told_units(pool: UnitPool) -> str:
    """How many units there are of each kind, and where, in words."""
    counts = torch.bincount(pool.owners, minlength=len(pool.sets)).tolist()
    told = [
        f"{count} {item.kind}{'s' * (count != 1)} of {item.name}" for item, count in zip(pool.sets, counts, strict=True)
    ]
    return f"{', '.join(told[:3])}{f' and {len(told) - 3} more sets' if len(told) > 3 else ''}"


def check_seed(seed: object) -> None:
    """Refuse what is no seed.

    Raises:
        ConfigurationError: It is not a whole number, or below 0.
    """
    if type(seed) is not int or seed < 0:
        raise ConfigurationError(f"seed is {seed!r}; it must be a whole number, and at least 0.")


def rows_held_out(question: Question, held_out: Any, answers: Any, correct: Any) -> list[EncodedRow]:
    """Held-out rows, none of which is a row of the question; the arguments are those of ``evidence_of``.

    Raises:
        DataError: They cannot be read, there are none, or some are rows of the question.
    """
    rows = held_out_rows(question, held_out, answers, correct)
    if not rows:
        raise DataError("There are no held-out rows to judge by: held_out is empty.")
    check_unseen(question, rows)
    return rows
