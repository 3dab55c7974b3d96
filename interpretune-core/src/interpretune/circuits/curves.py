"""How faithful and how complete circuits are, over their number of units, for each ranking (Marks et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from attrs import frozen
from plotly.colors import qualitative

from interpretune.circuits.measured_sets import MeasuredSets
from interpretune.circuits.rankings import Numbers, Rankings, strongest_first
from interpretune.circuits.share_of_pool import Whole
from interpretune.circuits.stored_result import CircuitResult, Floats, check_seed, rows_held_out, told_of, told_units
from interpretune.circuits.unit_pool import UnitPool
from interpretune.errors import ConfigurationError
from interpretune.evidence.gathering import question_asked
from interpretune.questions.encoding import EncodedRow
from interpretune.questions.model_and_rows import check_count
from interpretune.questions.prompt_row import brief
from interpretune.questions.question import Question
from interpretune.questions.result import Effects

RANDOM = "random"


@frozen(eq=False, repr=False)
class Faithfulness(CircuitResult):
    """Faithfulness and completeness of circuits, over their number of units, on held-out rows.

    A circuit C is the first units of a ranking. With m the mean objective over rows, its faithfulness is ``F(C) =
    (m(C) - m(nothing)) / (m(model) - m(nothing))``, where all units of the pool outside C are changed, in ``nothing``
    all of them; its completeness is F of all units outside C: 0 where nothing is missing.

    Attributes:
        rankings: Their names, ``r``.
        sizes: Numbers of units, ascending, ``s``.
        units: Number of units in the pool.
        pool_told: Which they are, in words.
        model: Objective of each row with nothing changed, ``[rows]``.
        nothing: With the whole pool changed, ``[rows]``.
        kept: With all but the circuit changed, ``[r, s, rows]``; of random rankings means over the draws.
        left_out: With the circuit changed, ``[r, s, rows]``.
    """

    kind: ClassVar[str] = "faithfulness"

    rankings: tuple[str, ...]
    sizes: tuple[int, ...]
    units: int
    pool_told: str
    model: Floats
    nothing: Floats
    kept: Floats
    left_out: Floats

    @property
    def undefined(self) -> str:
        """Why no share is told, in words; empty where it is."""
        return Whole(self.model, self.nothing).near_zero

    def to_pandas(self) -> pd.DataFrame:
        """A line for each ranking and size, with 95 % intervals over rows of both ratios of means.

        Returns:
            ``ranking``, ``nodes``; ``faithfulness``, ``low``, ``high``; ``completeness``, ``completeness_low``,
            ``completeness_high``. NaN where the whole pool does next to nothing.
        """
        whole, n = Whole(self.model, self.nothing), len(self.sizes)
        both = np.concatenate([self.kept, self.left_out]).reshape(-1, len(self.model))
        found = whole.shares(both)
        columns = {"ranking": np.repeat(self.rankings, n), "nodes": np.tile(self.sizes, len(self.rankings))}
        names = (("faithfulness", "low", "high"), ("completeness", "completeness_low", "completeness_high"))
        for i, group in enumerate(names):
            for name, values in zip(group, (found.values, found.low, found.high), strict=True):
                columns[name] = np.split(values, 2)[i]
        return pd.DataFrame(columns)

    def nodes_for(self, share: float = 0.8) -> pd.Series[int]:
        """The least of the sizes from which on a ranking's circuits are that faithful; none where no size is.

        The index has the rankings.
        """
        told = self.to_pandas()
        found = {}
        for name, part in told.groupby("ranking", sort=False):
            short = part.nodes[~(part.faithfulness >= share)]
            enough = part.nodes[part.nodes > short.max()] if len(short) else part.nodes
            found[name] = enough.min() if len(enough) else None
        return pd.Series(found, dtype="Int64", name="nodes")

    def plot(self) -> go.Figure:
        """Faithfulness over the number of units, a line for each ranking with its interval; dotted, completeness."""
        figure, told = go.Figure(), self.to_pandas()
        for color, (name, part) in zip(cycle(qualitative.Plotly), told.groupby("ranking", sort=False), strict=False):
            ends = {"type": "data", "array": part.high - part.faithfulness, "arrayminus": part.faithfulness - part.low}
            both = {"x": part.nodes, "line": {"color": color}, "legendgroup": name}
            figure.add_scatter(y=part.faithfulness, name=name, error_y=ends, **both)
            dotted = {**both, "line": {"color": color, "dash": "dot"}}
            figure.add_scatter(y=part.completeness, name=f"{name}, completeness", visible="legendonly", **dotted)
        figure.update_traces(hovertemplate="%{x} units: %{y:.3g}<extra></extra>")
        figure.update_layout(
            title=f"{self.objective}: faithfulness on {len(self.model)} held-out rows",
            xaxis={"title": f"units kept of {self.units}, the others set to {self.value}", "type": "log"},
            yaxis_title="faithfulness",
            template="plotly_white",
        )
        return figure

    def __repr__(self) -> str:
        told = self.undefined
        if not told:
            nodes = self.nodes_for()
            told = "80 % are reached with " + ", ".join(
                f"{'no number of' if count is pd.NA else count} units ({name})" for name, count in nodes.items()
            )
        return (
            f"Faithfulness on {len(self.model)} held-out rows for {self.objective}, all units outside the circuit set "
            f"to {self.value}, out of {self.units} ({self.pool_told}): {told}"
        )


def faithfulness(
    effects: Effects,
    held_out: Any,
    *,
    answers: Any = "answers",
    correct: Any = "correct",
    rankings: Rankings | Numbers = ("exact", "gradient"),
    sizes: Iterable[int] | None = None,
    draws: int = 5,
    seed: int = 0,
) -> Faithfulness:
    """Faithfulness and completeness of the first units of rankings, on held-out rows (Marks et al. 2024, section 3).

    The pool is all units of the question. What lies outside of it stays in its place: other hook points, and of
    dictionaries the error term, computed anew from what reaches them; a dictionary without one is spliced in without it
    in the model, too. A ranking orders units by the size of their mean effects over the question's rows.

    Args:
        effects: As in ``set_effects``.
        held_out: Rows that are none of the question's, as ``effects`` takes them.
        answers: Texts for all held-out rows, or the name of the column that has those of each row.
        correct: The correct answer of held-out rows, likewise.
        rankings: Names of methods, which are asked, ``exact`` being ``effects``; ``Effects`` of the same question by
            other methods; or a mapping from names to these or to data frames with the columns ``units``, ``unit`` and
            ``effect``.
        sizes: Numbers of units; None: 1, 2, 3, 4, 6, 8, 12, ... and all.
        draws: How many random rankings are averaged; 0: none.
        seed: Of these.

    Returns:
        The curves, also kept in ``effects.store``.

    Raises:
        AnalysisError: As ``set_effects``; a ranking is of another question, or of other units.
        ConfigurationError: A number is out of range, or there is no such method.
        DataError: Held-out rows cannot be read, or are rows of the question.
        StoreError: The store cannot be written.
    """
    question = question_asked(effects)
    check_seed(seed)
    if draws != 0:
        check_count("draws", draws)
    rows = rows_held_out(question, held_out, answers, correct)
    pool = UnitPool.of_all(question)
    n = len(pool)
    given = sizes_of(n) if sizes is None else [*sizes] if isinstance(sizes, Iterable) else []
    if not given or any(type(size) is not int or not 0 <= size <= n for size in given):
        told = brief(given or sizes)
        raise ConfigurationError(f"sizes is {told}; give a list of whole numbers from 0 to {n}, the number of units.")
    counts = sorted({*given})
    numbers = Numbers.of(question, effects, rankings)
    if not numbers.given and not draws:
        raise ConfigurationError("There is nothing to draw: rankings is empty, and draws is 0. Give one of them.")
    if draws and RANDOM in numbers.given:
        raise ConfigurationError(f"Two rankings are called {RANDOM!r}. Call yours otherwise, or draw none: draws=0.")
    settings = [rows, numbers.told(pool), counts, draws, seed]

    def compute() -> Faithfulness:
        return curves_of(question, rows, numbers.by_unit(pool), counts, draws, seed)

    return Faithfulness.once(effects, question, settings, compute)


def sizes_of(n: int) -> list[int]:
    """Numbers of units at which circuits are looked at: 1, 2, 3, 4, 6, 8, 12, ... and all."""
    found = {size for i in range(n.bit_length()) for size in (2**i, 3 * 2**i) if size <= n}
    return sorted({*found, n})


def curves_of(
    question: Question,
    rows: Sequence[EncodedRow],
    scores: Mapping[str, Floats],
    counts: Sequence[int],
    draws: int,
    seed: int,
) -> Faithfulness:
    """Faithfulness of rankings by numbers of all units of a question, ``[n]`` each, on held-out rows."""
    pool = UnitPool.of_all(question)
    n, draw = len(pool), np.random.default_rng(seed)
    orders = [strongest_first(values) for values in scores.values()]
    orders += [draw.permutation(n).tolist() for _ in range(draws)]
    places = torch.tensor(orders).argsort(-1)
    circuits = places.unsqueeze(1) < torch.tensor(counts).view(1, -1, 1)  # [r, s, n]
    measured = MeasuredSets(question, pool, rows)
    every = torch.ones(1, n, dtype=torch.bool)
    found = measured.objectives(torch.cat([every, *(~circuits).unbind(0), *circuits.unbind(0)]))
    split = found[1:].reshape(2, len(orders), len(counts), -1)
    means = [split[:, : len(scores)], *([split[:, len(scores) :].mean(1, keepdims=True)] if draws else [])]
    kept, left_out = np.concatenate(means, axis=1)
    return Faithfulness(
        **told_of(question),
        rankings=(*scores, *([RANDOM] if draws else [])),
        sizes=tuple(counts),
        units=n,
        pool_told=told_units(pool),
        model=measured.clean,
        nothing=found[0],
        kept=kept,
        left_out=left_out,
    )
