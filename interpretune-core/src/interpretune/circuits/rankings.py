"""Numbers that methods write for units: exact effects, gradients, or those of anybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from attrs import evolve, frozen

from interpretune.circuits.stored_result import Floats
from interpretune.circuits.unit_pool import UnitPool
from interpretune.errors import AnalysisError, ConfigurationError
from interpretune.operations.objectives import check_gradient
from interpretune.questions.prompt_row import brief
from interpretune.questions.question import EFFECTS, Question
from interpretune.questions.result import Effects

UNIT, NODE = ["units", "unit"], ["row", "position", "units", "unit"]
"""What a number is of: a unit, all rows together; or a unit at a token of a row."""

Rankings = Sequence[Any] | Mapping[str, Any]
"""Names of methods, ``Effects``, or data frames with the columns ``units, unit, effect``; named by a mapping."""


@frozen(eq=False)
class Numbers:
    """Numbers of several methods, by name; methods that are named only are asked once, when numbers are wanted.

    Attributes:
        given: What each is: the name of a method, or a data frame with ``units``, ``unit``, ``effect``, maybe ``row``
            and ``position``.
    """

    _question: Question
    _effects: Effects
    given: Mapping[str, Any]

    @classmethod
    def of(cls, question: Question, effects: Effects, rankings: Rankings | Numbers) -> Numbers:
        """Look at rankings.

        Raises:
            AnalysisError: Effects are those of another question, or a data frame lacks a column or names a unit twice.
            ConfigurationError: There is no such method, it ranks nothing, or two have the same name.
        """
        if isinstance(rankings, Numbers):
            return rankings
        if not isinstance(rankings, (Mapping, list, tuple)):
            rankings = [rankings]
        pairs = list(rankings.items()) if isinstance(rankings, Mapping) else [(_name(item), item) for item in rankings]
        names = [name for name, _ in pairs]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigurationError(f"Two rankings are called {sorted(twice)[0]!r}. Give a mapping from names.")
        return cls(question, effects, {name: _checked(question, effects, name, item) for name, item in pairs})

    def told(self, pool: UnitPool) -> dict[str, Any]:
        """What keys of results say of them."""
        n_points = self._effects.store.n_examples
        return {
            name: [item, self._question.steps if item == "integrated_gradients" else None]
            if isinstance(item, str)
            else torch.from_numpy(by_unit(item, pool, n_points))
            for name, item in self.given.items()
        }

    @cached_property
    def frames(self) -> dict[str, pd.DataFrame]:
        """The numbers."""
        return {name: self._asked(item) if isinstance(item, str) else item for name, item in self.given.items()}

    def by_unit(self, pool: UnitPool) -> dict[str, Floats]:
        """The number of each unit of a pool, ``[n]``."""
        return {name: by_unit(frame, pool, self._effects.store.n_examples) for name, frame in self.frames.items()}

    def _asked(self, method: Any) -> pd.DataFrame:
        if method == self._question.method:
            return self._effects.to_pandas()
        with torch.enable_grad():
            found: Effects = evolve(self._question, method=method, budget=None).answered(None)
        return found.to_pandas()


def _name(item: Any) -> str:
    if isinstance(item, Effects):
        return str(item.question["method"])
    if not isinstance(item, str):
        raise ConfigurationError(f"A {type(item).__name__} has no name. Give a mapping from names.")
    return item


def _checked(question: Question, effects: Effects, name: str, item: Any) -> str | pd.DataFrame:
    if isinstance(item, str):
        if item not in EFFECTS:
            raise ConfigurationError(f"There is no method {item!r}; there are {', '.join(EFFECTS)}, and data frames.")
        if item == "gradient":
            check_gradient(question.objective, "'integrated_gradients'")
        return item
    if isinstance(item, Effects):
        _check_alike(effects, item, name)
        return item.to_pandas()
    if not isinstance(item, pd.DataFrame) or {*UNIT, "effect"} - {*item.columns}:
        told = f"the columns {', '.join(map(str, item.columns))}" if isinstance(item, pd.DataFrame) else brief(item)
        raise AnalysisError(
            f"The ranking {name!r} is {told}. Give Effects, the name of a method, or a data frame with the columns "
            "units, unit and effect, and with row and position where it has a number for each."
        )
    if item.duplicated(NODE if {*NODE} <= {*item.columns} else UNIT).any():
        raise AnalysisError(f"The ranking {name!r} names a unit twice; give it one number.")
    return item


def _check_alike(effects: Effects, other: Effects, name: str) -> None:
    """Refuse effects of another question than the method, the steps and the budget make."""
    for part in ("objective", "value", "positions", "units", "mean_over"):
        mine, theirs = (item.question.get(part, ()) for item in (effects, other))
        if mine != theirs:
            told = f"its {part} is {brief(theirs)}, not {brief(mine)}"
            if part == "mean_over":
                told = "its means are over other rows"
            elif part == "units" and _named(mine) == _named(theirs):
                told = "other units of the same unit sets are chosen"
            raise AnalysisError(f"The ranking {name!r} is of another question: {told}.")
    if effects.store.manifest.about["data"] != other.store.manifest.about["data"]:
        raise AnalysisError(f"The ranking {name!r} is of other rows or tokens.")


def _named(units: Sequence[Mapping[str, Any]]) -> list[str]:
    return [item["name"] for item in units]


def by_unit(numbers: pd.DataFrame, pool: UnitPool, n_points: int) -> Floats:
    """The number of each unit of a pool, ``[n]``: the mean over all points of numbers of points, 0 where there is none.

    Raises:
        AnalysisError: Numbers are of units that are not in the pool.
    """
    if not np.isfinite(numbers.effect.to_numpy(np.float64)).all():
        raise AnalysisError("Numbers of a ranking are NaN or infinite.")
    at_points = {*NODE} <= {*numbers.columns}
    sums = numbers.groupby(UNIT, observed=True).effect.sum() / (n_points if at_points else 1)
    where = pool.found(list(sums.index))
    found = np.zeros(len(pool))
    found[where.numpy()] = sums.to_numpy(np.float64)
    return found


def strongest_first(numbers: Floats) -> list[int]:
    """Units by the size of their numbers, largest first; of equal ones the earlier."""
    found: list[int] = np.argsort(-np.abs(numbers), kind="stable").tolist()
    return found
