"""The circuit of a question: which units are enough, how faithful they are, and what they do to each other."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from attrs import frozen

from interpretune.circuits.curves import Faithfulness, faithfulness
from interpretune.circuits.exact_edges import CircuitEdges, edges_of
from interpretune.circuits.judging import JudgedMethods, judge_methods
from interpretune.circuits.rankings import Numbers
from interpretune.circuits.searches import NecessarySet, SufficientSet, Wanted, smallest_set
from interpretune.circuits.shapley import ShapleyValues, shapley_values
from interpretune.circuits.stored_result import CircuitResult, rows_held_out
from interpretune.circuits.unit_pool import NothingToFindError
from interpretune.circuits.unit_sets import PairEffects, pair_effects
from interpretune.errors import AnalysisError, StoreError
from interpretune.evidence.gathering import key_of, question_asked
from interpretune.evidence.stored import digest_of_facts, key_of_facts, read_facts, write_facts
from interpretune.questions.model_and_rows import check_count
from interpretune.questions.result import Effects
from interpretune.store.store import AnalysisStore

Approximation = Literal["gradient", "integrated_gradients"]
GATHERED = "circuit_gathered"
"""Table that says what was gathered."""


@frozen(eq=False)
class _Gathered:
    """The parts that were gathered, hashes of what they are, and why others are not there."""

    parts: tuple[str, ...]
    digests: tuple[str, ...]
    missing: tuple[str, ...]


@frozen(eq=False)
class Circuit:
    """What is known of the circuit of a question; parts that were not asked for are None.

    Attributes:
        sufficient: The smallest set of units that is enough.
        necessary: The smallest set without which little is left.
        faithfulness: Faithfulness and completeness on held-out rows.
        methods: Approximations held against exact effects.
        pairs: Effects of pairs.
        shapley: Shapley values.
        edges: Exact effects of the circuit's units on each other.
        missing: Why parts that were asked for are not there, in sentences.
    """

    sufficient: SufficientSet | None = None
    necessary: NecessarySet | None = None
    faithfulness: Faithfulness | None = None
    methods: JudgedMethods | None = None
    pairs: PairEffects | None = None
    shapley: ShapleyValues | None = None
    edges: CircuitEdges | None = None
    missing: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: str | Path) -> Circuit:
        """Read what ``circuit_of`` gathered last into the store of effects; else what the other functions left.

        Raises:
            StoreError: The folder is no store, or what lies there is damaged or of other effects.
        """
        return cls.of(AnalysisStore.open(folder))

    @classmethod
    def of(cls, store: AnalysisStore) -> Circuit:
        """The same of a store that is open, such as ``effects.store``."""
        found: dict[str, CircuitResult] = {}
        gathered = read_facts(store, GATHERED, _Gathered)
        digests = {} if gathered is None else dict(zip(gathered.parts, gathered.digests, strict=True))
        missing = () if gathered is None else gathered.missing
        for part, kind in PARTS.items():
            if gathered is not None and part not in digests:
                continue  # of a call with other settings
            item = read_facts(store, _table(part), kind)
            if item is None:
                continue
            if gathered is not None and _digest_there(store, part) != digests[part]:
                missing = (*missing, f"{kind.__name__} in the store are of a later call; gather the circuit again.")
                continue
            try:
                repr(item), item.to_pandas()
            except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:
                raise StoreError(f"{store}: the {kind.__name__} in it are damaged: {error}. Ask again.") from error
            found[part] = item
        return cls(**found, missing=missing)  # type: ignore[arg-type]  # of its part

    def __bool__(self) -> bool:
        return any(getattr(self, part) is not None for part in PARTS) or bool(self.missing)

    def __repr__(self) -> str:
        told = [repr(getattr(self, part)) for part in PARTS if getattr(self, part) is not None]
        return "\n".join([*told, *self.missing]) or "No circuit was gathered."


PARTS: dict[str, type[CircuitResult]] = {
    "sufficient": SufficientSet,
    "necessary": NecessarySet,
    "faithfulness": Faithfulness,
    "methods": JudgedMethods,
    "pairs": PairEffects,
    "shapley": ShapleyValues,
    "edges": CircuitEdges,
}
"""The parts, in the order in which they are gathered."""


def circuit_of(
    effects: Effects,
    *,
    held_out: Any = None,
    answers: Any = "answers",
    correct: Any = "correct",
    sets: Sequence[Wanted] = ("sufficient",),
    share: float = 0.8,
    pool: int = 30,
    width: int = 1,
    budget: int = 10_000,
    methods: Sequence[Approximation] = ("gradient",),
    sizes: Sequence[int] | None = None,
    draws: int = 5,
    top: int = 20,
    edges: int = 12,
    pairs: int = 0,
    shapley: int = 0,
    permutations: int = 100,
    seed: int = 0,
) -> Circuit:
    """Gather the circuit of a question: what the other functions of this package find, one after the other.

    What is in the store already with the same settings is not computed again. A part that cannot be had, since units do
    next to nothing, is left out, and the result says why.

    Args:
        effects: As in ``set_effects``; exact ones.
        held_out: Rows that are none of the question's, as ``effects`` takes them; None: sets are not judged, and there
            are no curves.
        answers: Texts for all held-out rows, or the name of the column that has those of each row.
        correct: The correct answer of held-out rows, likewise.
        sets: Which smallest sets are searched, ``sufficient`` or ``necessary``; see ``smallest_set``.
        share: What they are to reach.
        pool: Of so many units at the top.
        width: Of the search.
        budget: Most sets that a search evaluates.
        methods: Approximations that are judged (``judge_methods``), and have curves beside the exact ranking.
        sizes: Numbers of units in the curves; see ``faithfulness``. Empty: no curves.
        draws: Random rankings that are averaged there.
        top: Of how many units the overlap of methods is.
        edges: So many units get exact edges (``circuit_edges``): those of the sets, and then those at the top; 0: none.
        pairs: So many units at the top whose pairs are changed; 0: none.
        shapley: So many units at the top get Shapley values; 0: none.
        permutations: Orders that are drawn for these.
        seed: Of all that is drawn.

    Returns:
        The circuit, also kept in ``effects.store``.

    Raises:
        AnalysisError: The effects were not asked in this process, or are not exact.
        ConfigurationError: A number is out of range, or there is no such method or set.
        DataError: Held-out rows cannot be read, or are rows of the question.
        StoreError: The store cannot be written.
    """
    settings = {name: value for name, value in locals().items() if name != "effects"}
    store = effects.store
    with question_asked(effects).held():
        jobs, key = _jobs(effects, settings)
        if not _is_gathered(store, key):
            why_not = {part: _why_not(job) for part, job in jobs.items()}
            done = [part for part, why in why_not.items() if not why]
            missing = dict.fromkeys(filter(None, why_not.values()))
            told = _Gathered(tuple(done), tuple(str(_digest_there(store, part)) for part in done), tuple(missing))
            write_facts(store, GATHERED, key, told)
        return Circuit.of(store)


def parts_of_circuit(effects: Effects, **settings: Any) -> list[str]:
    """The parts that ``circuit_of`` would gather, since what it has gathered is not in the store."""
    jobs, key = _jobs(effects, settings)
    return [] if _is_gathered(effects.store, key) else list(jobs)


def seconds_of_circuit(effects: Effects, **settings: Any) -> dict[str, float]:
    """Gather the parts of effects in memory, and tell how long each took."""
    found = {}
    for part, job in _jobs(effects, settings)[0].items():
        start = time.perf_counter()
        with contextlib.suppress(NothingToFindError):
            job()
        found[part] = time.perf_counter() - start
    return found


def _why_not(job: Callable[[], Any]) -> str:
    """Do a part; why it cannot be had, or nothing."""
    try:
        job()
    except NothingToFindError as error:
        return str(error)
    return ""


def _is_gathered(store: AnalysisStore, key: str) -> bool:
    """Whether all that was gathered last, with the settings of this key, lies in the store."""
    if not key or key_of_facts(store, GATHERED, _Gathered) != key:
        return False
    told = read_facts(store, GATHERED, _Gathered)
    return all(_digest_there(store, part) == there for part, there in zip(told.parts, told.digests, strict=True))


def _filled(effects: Effects, nodes: Sequence[str], n: int) -> list[str]:
    """Units of sets, and those at the top up to so many; in the order of the top as far as they are there."""
    check_count("edges", n)
    top = effects.top(max(n, len(nodes))).name.tolist()
    kept = {*nodes, *[name for name in top if name not in nodes][: max(0, n - len(nodes))]}
    return [*(name for name in top if name in kept), *(name for name in nodes if name not in top)]


def _table(part: str) -> str:
    return f"circuit_{part}"


def _digest_there(store: AnalysisStore, part: str) -> str | None:
    return digest_of_facts(store, _table(part), PARTS[part]) if part in PARTS else None


def _jobs(effects: Effects, settings: Mapping[str, Any]) -> tuple[dict[str, Callable[[], Any]], str]:
    """What ``circuit_of`` does, by part, and the key of its settings; it raises what this does."""
    question, told = question_asked(effects), {**DEFAULTS, **settings}
    if question.method != "exact":
        raise AnalysisError(f"A circuit stands on exact effects; these are of the method {question.method}.")
    others = {name: told.pop(name) for name in ("held_out", "answers", "correct")}
    rows = None if others["held_out"] is None else rows_held_out(question, **others)
    key = ""
    if effects.store.folder is not None:
        with question.held():
            key = key_of(question, [rows, sorted((name, repr(value)) for name, value in told.items())])
    numbers = Numbers.of(question, effects, ["exact", *told["methods"]])
    search = {name: told[name] for name in ("share", "pool", "width", "budget")}
    nodes: list[str] = []

    def searched(wanted: Wanted) -> None:
        found = smallest_set(effects, wanted, **search, **others)
        nodes.extend(unit for unit in found.units if unit not in nodes)

    jobs: dict[str, Callable[[], Any]] = {wanted: partial(searched, wanted) for wanted in told["sets"]}
    if rows is not None and (told["sizes"] is None or len(told["sizes"])):
        curves = {name: told[name] for name in ("sizes", "draws", "seed")}
        jobs["faithfulness"] = lambda: faithfulness(effects, rankings=numbers, **others, **curves)
    if told["methods"]:
        jobs["methods"] = lambda: judge_methods(effects, numbers, top=told["top"])
    if told["pairs"]:
        jobs["pairs"] = lambda: pair_effects(effects, told["pairs"])
    if told["shapley"]:
        drawn = {name: told[name] for name in ("permutations", "seed")}
        jobs["shapley"] = lambda: shapley_values(effects, told["shapley"], **drawn)
    if told["edges"]:
        jobs["edges"] = lambda: edges_of(effects, _filled(effects, nodes, told["edges"]), numbers)
    return jobs, key


DEFAULTS: Mapping[str, Any] = {
    name: item.default
    for name, item in inspect.signature(circuit_of).parameters.items()
    if item.default is not inspect.Parameter.empty
}
"""Of the settings of ``circuit_of``."""
