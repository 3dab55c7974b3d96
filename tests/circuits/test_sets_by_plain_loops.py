"""Sets of units, searches and curves equal what whole forwards of one row each give, in four architectures."""

from __future__ import annotations

from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import interpretune as it
from interpretune.circuits import faithfulness, pair_effects, set_effects, shapley_values, smallest_set
from interpretune.questions import backend_of
from interpretune.questions.units import unit_sets
from interpretune.testing.tiny_models import tiny_tokenizer
from tests.circuits.plain_sets import PlainSets, rows_of
from tests.questions.plain_loops import Coder
from tests.tiny_architectures import make_model


class Linear(Coder):
    def decoder_rows(self, latents: Tensor) -> Tensor:
        return self.parts[2][latents]


CASES: dict[str, tuple[Any, ...]] = {
    "heads and neurons": (
        "llama",
        "left",
        "corrupted",
        "answer",
        3,
        [it.Heads(2, [0, 2]), it.Neurons(0, [3, 5, 8, 9])],
    ),
    "each token": ("gpt2", "right", "zero", "each", 2, [it.Heads(1), it.Neurons(2, [1, 2])]),
    "windows": (
        "gemma3",
        "left",
        "mean",
        "answer",
        2,
        [it.Heads(0, [1]), it.Heads(2, [0, 3]), it.Neurons(3, [1, 3, 5])],
    ),
    "one row": ("qwen3", "right", "corrupted", "answer", 1, [it.Heads(1), it.Neurons(3, [0, 7])]),
    "latents and heads": ("llama", "right", "zero", "answer", 2, [it.Heads(3, [0, 1]), "latents"]),
}


class Case:
    """A question about six units, and the objective of all sets of them by plain loops."""

    def __init__(self, kind: str, side: str, value: str, positions: str, n_rows: int, units: list[Any]) -> None:
        self.model, self.tokenizer = make_model(kind), tiny_tokenizer(side)
        self.rows, self.held_out = rows_of("asked")[:n_rows], rows_of("held out")[:2]
        self.plain = PlainSets(self.model, self.tokenizer, self.rows, value, positions)
        if "latents" in units:
            place = "layers.1.resid_post"
            self.plain.coder = Linear("sae", place, place, torch.float64, False, True, d_sae=4)
            units = [self.plain.coder if item == "latents" else item for item in units]
        self.asked = {"units": units, "value": value, "positions": positions, "batch_size": 2}
        self.known: dict[str, dict[Any, float]] = {}
        rows = []  # the correct answer is the one that all units together speak for
        sets = unit_sets(units, backend_of(self.model, self.tokenizer))
        self.units = ids = [(item.name, unit) for item in sets for unit in item.ids.tolist()]
        for row in self.rows + self.held_out:
            clean, changed = self.plain.objectives(row, [[], ids])
            away = clean < changed
            rows.append(it.PromptRow(row.prompt, row.answers, 1 - row.correct if away else row.correct, row.corrupted))
        self.rows, self.held_out = rows[:n_rows], rows[n_rows:]

    def asked_by(self, method: str) -> it.Effects:
        return it.effects(self.model, self.tokenizer, self.rows, method=method, **self.asked)

    @cached_property
    def effects(self) -> it.Effects:
        return self.asked_by("exact")

    def objective(self, row: it.PromptRow, units: Any) -> float:
        if row.prompt not in self.known:
            subsets = [frozenset(item) for size in range(7) for item in combinations(self.units, size)]
            self.known[row.prompt] = dict(zip(subsets, self.plain.objectives(row, subsets), strict=True))
        return self.known[row.prompt][frozenset(units)]

    def mean(self, rows: list[it.PromptRow], units: Any) -> float:
        return float(np.mean([self.objective(row, units) for row in rows]))

    def share(self, rows: list[it.PromptRow], kept: Any) -> float:
        """F of a circuit, by its definition."""
        nothing = self.mean(rows, self.units)
        return (self.mean(rows, {*self.units} - {*kept}) - nothing) / (self.mean(rows, []) - nothing)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*CASES[request.param])


def test_sets_pairs_and_shapley_values(case):
    effects, sets = case.effects, [case.units[:3], case.units[::2], case.units]
    found = set_effects(effects, sets)
    alone = {unit: [case.objective(row, []) - case.objective(row, [unit]) for row in case.rows] for unit in case.units}
    for i, units in enumerate(sets):
        expected = [case.objective(row, []) - case.objective(row, units) for row in case.rows]
        assert found.effects[i] == pytest.approx(expected, abs=1e-10)
        assert found.summed[i] == pytest.approx(np.sum([alone[unit] for unit in units], 0), abs=1e-10)

    pairs = pair_effects(effects, case.units)
    for (a, b), interaction in zip(combinations(case.units, 2), pairs.interactions, strict=True):
        both = [case.objective(row, []) - case.objective(row, [a, b]) for row in case.rows]
        assert interaction == pytest.approx(np.array(both) - alone[a] - alone[b], abs=1e-10)

    some = case.units[1:5]
    values = shapley_values(effects, some, permutations=7, seed=3)
    draw = np.random.default_rng(3)
    added: dict[Any, list[list[float]]] = {unit: [] for unit in some}
    for order in ([some[i] for i in draw.permutation(4)] for _ in range(7)):
        for i, unit in enumerate(order):
            ends = [[case.objective(row, order[:k]) for row in case.rows] for k in (i, i + 1)]
            added[unit].append(list(np.subtract(*ends)))
    for unit, value, error in zip(some, values.values, values.standard_errors, strict=True):
        assert value == pytest.approx(np.mean(added[unit], 0), abs=1e-10)
        assert error == pytest.approx(np.mean(added[unit], 1).std(ddof=1) / 7**0.5, abs=1e-10)
    assert values.values.sum(0) == pytest.approx(values.total, abs=1e-12)
    assert values.total == pytest.approx(set_effects(effects, [some]).effects[0], abs=1e-10)


def test_a_wide_beam_finds_the_smallest_set_of_all(case):
    effects = case.effects
    subsets = [list(item) for size in range(1, 7) for item in combinations(case.units, size)]
    complement = {True: lambda item: item, False: lambda item: {*case.units} - {*item}}
    for wanted in ("sufficient", "necessary"):
        keeps = wanted == "sufficient"

        def share(item: Any, rows: Any = case.rows, keeps: bool = keeps) -> float:
            part = case.share(rows, complement[keeps](item))
            return part if keeps else 1 - part

        shares = [share(item) for item in subsets]
        least = next(len(item) for item, reached in zip(subsets, shares, strict=True) if reached >= 0.7)
        best = max(s for item, s in zip(subsets, shares, strict=True) if len(item) == least)
        asked: dict[str, Any] = {"share": 0.7, "pool": case.units}
        beam = smallest_set(effects, wanted, width=20, held_out=case.held_out, **asked)
        assert (len(beam.units), beam.reached, beam.proven) == (least, True, True)
        assert beam.path[-1] == pytest.approx(best, abs=1e-9)
        told = beam.shares().set_index("rows")
        units = [case.units[beam.pool.index(name)] for name in beam.units]
        assert told.share["question"] == pytest.approx(best, abs=1e-9)
        assert told.share["held-out"] == pytest.approx(share(units, case.held_out), abs=1e-9, nan_ok=True)
        greedy = smallest_set(effects, wanted, **asked)
        assert greedy.reached
        assert not greedy.proven
        assert len(greedy.units) >= least
        taken: list[Any] = []
        for name, reached in zip(greedy.units, greedy.path, strict=True):  # each is the best next step
            ways = {unit: share([*taken, unit]) for unit in case.units if unit not in taken}
            assert reached == pytest.approx(max(ways.values()), abs=1e-9)
            taken.append(case.units[greedy.pool.index(name)])
        assert greedy.evaluations == 1 + sum(6 - i for i in range(len(taken)))


def test_curves_are_those_of_plain_loops(case):
    found = faithfulness(
        case.effects, case.held_out, rankings=["exact", "gradient"], sizes=[0, 1, 3, 6], draws=2, seed=1
    )
    table = found.to_pandas().set_index(["ranking", "nodes"])
    draw = np.random.default_rng(1)
    drawn = [[case.units[i] for i in draw.permutation(6)] for _ in range(2)]
    orders: dict[str, list[list[Any]]] = {"random": drawn}
    for name in ("exact", "gradient"):
        sums = case.asked_by(name).to_pandas().groupby(["units", "unit"], observed=True).effect.sum()
        orders[name] = [sorted(case.units, key=lambda unit, sums=sums: -abs(sums.get(unit, 0.0)))]
    for (name, size), line in table.iterrows():
        kept = np.mean([case.share(case.held_out, order[:size]) for order in orders[name]])
        without = np.mean([case.share(case.held_out, order[size:]) for order in orders[name]])
        assert line.faithfulness == pytest.approx(kept, abs=1e-9)
        assert line.completeness == pytest.approx(without, abs=1e-9)
        assert line.low - 1e-9 <= line.faithfulness <= line.high + 1e-9
    assert table.faithfulness.xs(6, level="nodes").tolist() == pytest.approx([1.0] * 3)
    assert table.faithfulness.xs(0, level="nodes").tolist() == pytest.approx([0.0] * 3)
