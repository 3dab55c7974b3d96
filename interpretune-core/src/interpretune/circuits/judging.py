"""Methods that write a number for each node, held against the exact effects."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd
from attrs import frozen

from interpretune.circuits.curves import curves_of, sizes_of
from interpretune.circuits.rankings import NODE, UNIT, Numbers, Rankings, by_unit, strongest_first
from interpretune.circuits.share_of_pool import check_share
from interpretune.circuits.stored_result import CircuitResult, Floats, rows_held_out, told_of, told_units
from interpretune.circuits.unit_pool import UnitPool
from interpretune.errors import AnalysisError
from interpretune.evidence.gathering import question_asked
from interpretune.questions.model_and_rows import check_count
from interpretune.questions.result import Effects


@frozen(eq=False, repr=False)
class JudgedMethods(CircuitResult):
    """Methods held against the exact effects of units.

    All but the last two are of mean effects over the question's rows, one number a unit; units without an effect are
    left out. Entries are one for each method.

    Attributes:
        methods: Their names, ``exact`` first.
        units: How many units the numbers are of.
        pool_told: The units of the question in words.
        top: Of how many the overlap is.
        share: Of what the circuit is to be faithful.
        sign_errors: Share of units whose number has the other sign than the exact one.
        wrong_sign: Part of the summed size of exact effects that is of these units.
        rank_correlation: Spearman's, of the numbers; NaN where all are equal.
        top_overlap: Share of the ``top`` units by size that the exact effects have at the top, too.
        node_sign_errors: Share of nodes, units at a token of a row, with the other sign; NaN where the method writes
            one number a unit.
        node_rank_correlation: Spearman's, over nodes; NaN likewise.
        nodes_needed: Units with which circuits are that faithful on held-out rows; NaN where there are no such rows, or
            the share is not reached.
        top_faithfulness: Of the first ``top`` units there; NaN likewise.
    """

    kind: ClassVar[str] = "methods"

    methods: tuple[str, ...]
    units: int
    pool_told: str
    top: int
    share: float
    sign_errors: Floats
    wrong_sign: Floats
    rank_correlation: Floats
    top_overlap: Floats
    node_sign_errors: Floats
    node_rank_correlation: Floats
    nodes_needed: Floats
    top_faithfulness: Floats

    def to_pandas(self) -> pd.DataFrame:
        """A line for each method; the columns are the attributes, with ``nodes_for_80`` for a share of 0.8."""
        return pd.DataFrame(
            {
                "method": self.methods,
                "sign_errors": self.sign_errors,
                "wrong_sign": self.wrong_sign,
                "rank_correlation": self.rank_correlation,
                "top_overlap": self.top_overlap,
                "node_sign_errors": self.node_sign_errors,
                "node_rank_correlation": self.node_rank_correlation,
                f"nodes_for_{100 * self.share:.0f}": self.nodes_needed,
                f"faithfulness_of_{self.top}": self.top_faithfulness,
            }
        )

    def __repr__(self) -> str:
        return (
            f"{len(self.methods) - 1} methods held against exact effects on {self.objective} of {self.units} units set "
            f"to {self.value} ({self.pool_told})"
        )


def judge_methods(
    effects: Effects,
    rankings: Rankings | Numbers = ("gradient", "integrated_gradients"),
    *,
    held_out: Any = None,
    answers: Any = "answers",
    correct: Any = "correct",
    top: int = 20,
    share: float = 0.8,
) -> JudgedMethods:
    """Hold methods that write a number for each unit against the exact effects.

    Where exact effects were left out for a budget, only the nodes that have one are compared.

    Args:
        effects: Exact effects that were asked in this process.
        rankings: As in ``faithfulness``, whatever is to be judged.
        held_out: Rows that are none of the question's, for faithfulness; None: it is not looked at.
        answers: Texts for all held-out rows, or the name of the column that has those of each row.
        correct: The correct answer of held-out rows, likewise.
        top: Of how many units the overlap and the faithfulness are.
        share: How faithful a circuit is to be whose number of units is told.

    Returns:
        The table, also kept in ``effects.store``.

    Raises:
        AnalysisError: As ``set_effects``, the effects are not exact, or a ranking is of another question.
        ConfigurationError: A number is out of range, or there is no such method.
        DataError: Held-out rows cannot be read, or are rows of the question.
        StoreError: The store cannot be written.
    """
    question = question_asked(effects)
    if question.method != "exact":
        raise AnalysisError(f"Methods are held against exact effects; these are of the method {question.method}.")
    check_count("top", top)
    check_share(share)
    rows = None if held_out is None else rows_held_out(question, held_out, answers, correct)
    asked, pool = Numbers.of(question, effects, rankings), UnitPool.of_all(question)

    def compute() -> JudgedMethods:
        numbers = {"exact": effects.to_pandas(), **asked.frames}
        scores = {name: by_unit(frame, pool, effects.store.n_examples) for name, frame in numbers.items()}
        found = [held_against(numbers["exact"], frame, top) for frame in numbers.values()]
        judged: dict[str, Any] = {name: np.array([item[name] for item in found]) for name in found[0]}
        reached = np.full((2, len(numbers)), np.nan)
        if rows is not None:
            sizes = sorted({*sizes_of(len(pool)), min(top, len(pool))})
            curves = curves_of(question, rows, scores, sizes, draws=0, seed=0)
            told = curves.to_pandas()
            reached[0] = curves.nodes_for(share).astype("Float64").to_numpy(np.float64, na_value=np.nan)
            reached[1] = told[told.nodes == min(top, len(pool))].faithfulness
        return JudgedMethods(
            **told_of(question),
            methods=tuple(numbers),
            units=numbers["exact"].groupby(UNIT, observed=True).ngroups,
            pool_told=told_units(pool),
            top=top,
            share=share,
            **judged,
            nodes_needed=reached[0],
            top_faithfulness=reached[1],
        )

    settings = [rows, asked.told(pool), top, share]
    return JudgedMethods.once(effects, question, settings, compute)


def held_against(exact: pd.DataFrame, numbers: pd.DataFrame, top: int) -> dict[str, float]:
    """What a method's numbers are worth, at the nodes that have exact effects, as ``JudgedMethods`` names it."""
    nodes = {"sign_errors": np.nan, "rank_correlation": np.nan}
    if {*NODE} <= {*numbers.columns}:
        joined = exact[[*NODE, "effect"]].merge(numbers[[*NODE, "effect"]], "left", NODE).fillna({"effect_y": 0.0})
        nodes = _agreement(joined)
        by_unit = joined.groupby(UNIT, observed=True)[["effect_x", "effect_y"]].sum()
    else:
        mean = exact.groupby(UNIT, observed=True).effect.sum().rename("effect_x").reset_index()
        by_unit = (
            mean.merge(numbers[[*UNIT, "effect"]], "left", UNIT)
            .rename(columns={"effect": "effect_y"})
            .fillna({"effect_y": 0.0})
        )
    first, second = (by_unit[name].to_numpy(np.float64) for name in ("effect_x", "effect_y"))
    k = min(top, len(first))
    common = {*strongest_first(first)[:k]} & {*strongest_first(second)[:k]}
    wrong, sizes = first * second < 0, np.abs(first)
    return {
        **_agreement(by_unit),
        "wrong_sign": float(sizes[wrong].sum() / sizes.sum()) if sizes.any() else np.nan,
        "top_overlap": len(common) / k if k else np.nan,
        **{f"node_{name}": value for name, value in nodes.items()},
    }


def _agreement(numbers: pd.DataFrame) -> dict[str, float]:
    """Sign errors among exact effects (``effect_x``) that are not 0, and Spearman's correlation."""
    there = numbers[numbers.effect_x != 0]
    ranks = numbers[["effect_x", "effect_y"]].rank()
    return {
        "sign_errors": float((there.effect_x * there.effect_y < 0).mean()) if len(there) else np.nan,
        "rank_correlation": float(ranks.effect_x.corr(ranks.effect_y)),
    }
