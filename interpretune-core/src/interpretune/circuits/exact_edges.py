"""Exact effects of the units of a circuit on each other and on the objective, gradient effects beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from attrs import evolve, frozen

from interpretune.activations.hook_names import split_layer
from interpretune.circuits.dictionary_order import Order
from interpretune.circuits.node_question import SAME, NodeQuestion
from interpretune.circuits.rankings import UNIT, Numbers
from interpretune.circuits.stored_result import CircuitResult, Floats, told_of
from interpretune.circuits.unit_pool import Named, UnitPool
from interpretune.errors import AnalysisError
from interpretune.evidence.gathering import question_asked
from interpretune.evidence.intervals import ratios_over_rows
from interpretune.operations.objectives import has_gradient
from interpretune.questions.question import Question
from interpretune.questions.result import Effects
from interpretune.questions.units import UnitSet

TARGET = ["target_units", "target_unit"]


@frozen(eq=False, repr=False)
class CircuitEdges(CircuitResult):
    """Units as the nodes of a circuit, and the edges between them; all numbers are means over rows and tokens.

    Attributes:
        units: Names of the nodes, ``n``.
        sets: Unit set of each.
        ids: Its id there.
        kinds: What it is called: ``latent``, ``neuron``, ``head``, ``vector``.
        layers: Its layer; -1 where its hook point names none.
        heights: How many of the question's unit sets stand below it.
        node_effect: Exact effect on the objective, with its 95 % interval over rows, ``[3, n]``.
        node_size: Mean of these effects without their sign, by which units are ranked, ``[n]``.
        node_gradient: The same by the gradient; NaN where the objective has none.
        sources: Node that each edge comes from, ``e``.
        targets: Node that it goes to, which stands above.
        effect: Exact total effect on the target, at the token that is changed, with its interval, ``[3, e]``.
        size: Mean of the effects without their sign, ``[e]``.
        gradient: The same effect by the gradient; NaN on heads and vectors, and in models that are not replayed.
    """

    kind: ClassVar[str] = "edges"

    units: tuple[str, ...]
    sets: tuple[str, ...]
    ids: tuple[int, ...]
    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    heights: tuple[int, ...]
    node_effect: Floats
    node_size: Floats
    node_gradient: Floats
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    effect: Floats
    size: Floats
    gradient: Floats

    def __attrs_post_init__(self) -> None:
        n, e = len(self.units), len(self.sources)
        of_nodes = {len(item) for item in (self.sets, self.ids, self.kinds, self.layers, self.heights)}
        of_nodes |= {len(self.node_size), len(self.node_gradient)}
        shapes = (self.node_effect.shape, self.effect.shape, self.size.shape, self.gradient.shape)
        ends = {*self.sources, *self.targets}
        if of_nodes != {n} or shapes != ((3, n), (3, e), (e,), (e,)):
            raise ValueError("nodes or edges have not as many numbers as there are")
        if len(self.targets) != e or not ends <= {*range(n)}:
            raise ValueError("edges lead to nodes that are not there")

    def nodes(self) -> pd.DataFrame:
        """A line for each node.

        Returns:
            ``unit``; its exact mean ``effect`` on the objective, ``low``, ``high``; ``size``, the mean of the effects
            without their sign; ``gradient``.
        """
        effect, low, high = self.node_effect
        sizes = {"size": self.node_size, "gradient": self.node_gradient}
        return pd.DataFrame({"unit": self.units, "effect": effect, "low": low, "high": high, **sizes})

    def to_pandas(self) -> pd.DataFrame:
        """A line for each edge, largest mean size first, in units of the target's activation.

        Returns:
            ``source``, ``target``; the exact ``effect`` with ``low`` and ``high``; ``size``; ``gradient``.
        """
        effect, low, high = self.effect
        found = {
            "source": [self.units[i] for i in self.sources],
            "target": [self.units[i] for i in self.targets],
            "effect": effect,
            "low": low,
            "high": high,
            "size": self.size,
            "gradient": self.gradient,
        }
        return pd.DataFrame(found).sort_values("size", ascending=False, kind="stable", ignore_index=True)

    def __repr__(self) -> str:
        n, e = len(self.units), len(self.sources)
        return f"{e} exact edge{'s' * (e != 1)} between {n} unit{'s' * (n != 1)} set to {self.value}"


def circuit_edges(effects: Effects, units: Named = 20) -> CircuitEdges:
    """Exact total effects of units on those of them that stand above, at the token that is changed.

    They are what ``effects_on`` gives of the same units, with all dictionaries of the question spliced in where it has
    any; gradient effects stand beside them, and beside the effects on the objective.

    Args:
        effects: As in ``set_effects``; exact ones.
        units: So many at the top of the effects, or units by name.

    Returns:
        Nodes and edges, also kept in ``effects.store``.

    Raises:
        AnalysisError: As ``set_effects``, the effects are not exact, or two dictionaries are at one hook point.
        ConfigurationError: The number is out of range.
        StoreError: The store cannot be written.
    """
    return edges_of(effects, units, None)


def edges_of(effects: Effects, units: Named, numbers: Numbers | None) -> CircuitEdges:
    """The same, with ``numbers`` whose gradient effects on the objective are taken."""
    question = question_asked(effects)
    if question.method != "exact":
        raise AnalysisError(f"Edges stand beside exact effects; these are of the method {question.method}.")
    pool = UnitPool.chosen(question, effects, units)

    def compute() -> CircuitEdges:
        exact = effects.to_pandas()
        order = Order.of(question.backend, question.sets)
        sets = [_part(item, pool.places[pool.owners == i].sort().values) for i, item in enumerate(pool.sets)]
        of_units = {key: i for i, key in enumerate(zip(pool.table.units, pool.table.unit, strict=True))}
        dictionaries = [pool.sets[i].dictionary for i in pool.owners.tolist()]
        activations = [pool.sets[i].activation_name for i in pool.owners.tolist()]
        places = [split_layer(item.hook_point) for item in dictionaries]
        return CircuitEdges(
            **told_of(question),
            units=pool.names,
            sets=tuple(pool.table.units),
            ids=tuple(map(int, pool.table.unit)),
            kinds=tuple(pool.sets[i].kind for i in pool.owners.tolist()),
            layers=tuple(place[0] if place else -1 for place in places),
            heights=tuple(sum(name in above for above in order.above.values()) for name in activations),
            node_effect=_means(exact, _places(exact, UNIT, of_units), len(pool), effects),
            node_size=_means(
                exact.assign(effect=exact.effect.abs()), _places(exact, UNIT, of_units), len(pool), effects
            )[0],
            node_gradient=_gradients(question, effects, numbers, of_units),
            **_edges(question, effects, sets, order, of_units),
        )

    return CircuitEdges.once(effects, question, [pool.names], compute)


def _part(item: UnitSet, places: torch.Tensor) -> UnitSet:
    return evolve(item, ids=item.ids[places], members=item.members[places])


def _edges(
    question: Question, effects: Effects, sets: list[UnitSet], order: Order, of_units: Mapping[tuple[str, int], int]
) -> dict[str, Any]:
    on = [t for t in sets if any(t.activation_name in order.above[s.activation_name] for s in sets)]
    if not on:
        nothing = np.zeros(0)
        return {"sources": (), "targets": (), "effect": np.zeros((3, 0)), "size": nothing, "gradient": nothing}
    asked = NodeQuestion(
        **evolve(question, sets=sets, budget=None).parts,
        on=on,
        order=order,
        at=SAME,
        held_by={},
        tolerance=0.0,
        gradient=True,
    )
    with torch.enable_grad():
        found = asked.answered(None).to_pandas()
    n = len(of_units)
    codes = _places(found, UNIT, of_units) * n + _places(found, TARGET, of_units)
    edges, which = np.unique(codes, return_inverse=True)
    points = max(effects.store.n_examples, 1)
    return {
        "sources": tuple((edges // n).tolist()),
        "targets": tuple((edges % n).tolist()),
        "effect": _means(found, which, len(edges), effects),
        "size": np.bincount(which, found.effect.abs(), len(edges)) / points,
        "gradient": np.bincount(which, found.gradient, len(edges)) / points,
    }


def _places(frame: pd.DataFrame, columns: list[str], of_units: Mapping[tuple[str, int], int]) -> np.ndarray:
    """The node of each line; -1: none."""
    keys = zip(frame[columns[0]], frame[columns[1]], strict=True)
    return np.array([of_units.get(key, -1) for key in keys], dtype=np.int64)


def _means(frame: pd.DataFrame, which: np.ndarray, n: int, effects: Effects) -> Floats:
    """Means over all points of the effects of each of ``n``, with intervals over rows, ``[3, n]``."""
    points = np.concatenate([batch["row"].numpy() for batch in effects.store.batches(["row"])])
    rows, counts = np.unique(points, return_counts=True)
    there = which >= 0
    sums = np.zeros((len(rows), n))
    np.add.at(sums, (np.searchsorted(rows, frame.row[there]), which[there]), np.nan_to_num(frame.effect[there]))
    found = ratios_over_rows(sums, counts.astype(np.float64))
    return np.stack([found.values, found.low, found.high])


def _gradients(
    question: Question, effects: Effects, numbers: Numbers | None, of_units: Mapping[tuple[str, int], int]
) -> Floats:
    if not has_gradient(question.objective):
        return np.full(len(of_units), np.nan)
    known = numbers if numbers is not None and "gradient" in numbers.given else None
    frame = (known or Numbers.of(question, effects, ["gradient"])).frames["gradient"]
    which = _places(frame, UNIT, of_units)
    there = which >= 0
    sums = np.bincount(which[there], np.nan_to_num(frame.effect[there]), len(of_units))
    return sums / max(effects.store.n_examples, 1)
