"""Compare what two stores say of the same examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from interpretune.analysis.batch import FIELDS
from interpretune.analysis.cache import PLAIN, answers_of, objective_noted
from interpretune.analysis.direction import CORRECT, direction_of
from interpretune.comparison.agreement import (
    MEASURES,
    Floats,
    Resampling,
    TotalsOf,
    mean_within,
    measured_examples,
    measured_totals,
    measured_within,
)
from interpretune.comparison.differences import Counts, Largest
from interpretune.comparison.joining import Integers, Join, Pairs
from interpretune.comparison.result import ALL_HOOKS, Agreement, StoreComparison
from interpretune.errors import StoreError
from interpretune.questions.result import Effects
from interpretune.store.fields import Field, Per

if TYPE_CHECKING:
    from interpretune.store import AnalysisStore


SIGNED = frozenset({"effects", "logit_diffs", "gradients"})
"""Fields that core writes towards the correct answer; its others have no sign that an answer could turn."""
MEASURED = SIGNED | {"objective", "objective_spliced", "ablated_objective"}
"""Fields whose numbers are those of an objective."""
LATENTS, WITHIN, EXAMPLES = "latents", "within examples", "examples"


def compare_stores(
    left: AnalysisStore | Effects,
    right: AnalysisStore | Effects,
    field: str = "effects",
    *,
    right_field: str | None = None,
    names: tuple[str, str] = ("left", "right"),
    top_k: int = 10,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    largest: int = 100,
    other_data: bool = False,
    towards: str | int = CORRECT,
) -> StoreComparison:
    """Compare a field of numbers, per latent or per example, over the examples that both stores have.

    Intervals are percentiles of a bootstrap over examples: an example is drawn with all its latents.

    Args:
        left: A store of an analysis, or ``Effects``. Their examples are rows and tokens, in order; beside an analysis
            of the same rows, at the answer position, say ``other_data=True``.
        right: Another; or the same with another ``right_field``.
        field: Name of a field with one number per latent or per example.
        right_field: Its name in the right store, where it differs.
        names: What to call the stores in tables and figures.
        top_k: How many of the largest magnitude ``top-k overlap`` looks at.
        resamples: Bootstrap resamples; 0 for no intervals.
        confidence: Share of the resamples that an interval holds.
        seed: Seed of the resamples; the same seed gives the same intervals.
        largest: How many single differences are kept.
        other_data: Compare although the stores name different data.
        towards: The answer towards which effects count: ``"correct"``, as they are stored, or one answer for all
            examples, by its label or its word. A field of your own must be signed by the correct answer then.

    Returns:
        Measures of agreement, tables of differences, and counts of what only one store has.

    Raises:
        StoreError: The stores have no example or no latent model in common, lack the field, name different data, or
            measure different objectives.
        AnalysisError: There is no such answer.
    """
    left, right = (item.store if isinstance(item, Effects) else item for item in (left, right))
    measured = [objective_noted(store) or PLAIN for store in (left, right)]
    direction = direction_of(towards, answers_of(left) or answers_of(right), measured[0][0])
    fields = (field, right_field or field)
    declared = [_declared(store, name, side) for store, name, side in zip((left, right), fields, names, strict=True)]
    if declared[0].per is not declared[1].per:
        raise StoreError(
            f"{names[0]} has {fields[0]} per {declared[0].per}, {names[1]} has {fields[1]} per {declared[1].per}. "
            "Compare fields that are per the same."
        )
    if measured[0] != measured[1] and MEASURED & {*fields}:
        raise StoreError(
            f"{names[0]} is measured by {measured[0][0]}, {names[1]} by {measured[1][0]}: numbers of different "
            "objectives are not compared. Run both with the same objective, or compare another field."
        )
    if not other_data:
        _check_data(left, right, names)
    if unsigned := [] if direction.label is None else [name for name in fields if name in FIELDS.keys() - SIGNED]:
        raise StoreError(f"{unsigned[0]} is the same whichever answer is correct. Use towards={CORRECT!r}.")
    join = Join(left, right, fields, names, latents=declared[0].per is Per.latent, direction=direction)
    resampling = Resampling(resamples if len(join.examples) > 1 else 0, confidence, seed, top_k)
    per_latent = declared[0].per is Per.latent
    counts, kept = Counts(), Largest(largest)
    agreement = (_latents if per_latent else _examples)(join, counts, kept, resampling)
    return StoreComparison(
        field=fields[0] if fields[0] == fields[1] else f"{fields[0]} against {fields[1]}",
        per=declared[0].per,
        about=declared[0].about,
        names=names,
        examples=len(join.examples),
        only_left=join.only_left,
        only_right=join.only_right,
        hooks_apart=tuple(join.hooks_apart),
        pairs=counts.pairs,
        pairs_left=counts.pairs_left,
        pairs_right=counts.pairs_right,
        not_finite=counts.not_finite,
        direction=direction,
        agreement=tuple(agreement),
        top_k=top_k,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        latents=counts.table(join) if per_latent else None,
        largest=kept.table(join, latents=per_latent),
    )


def _latents(join: Join, counts: Counts, kept: Largest, resampling: Resampling) -> list[Agreement]:
    """Agreement of the totals of latents, and within examples, at each hook and at all of them."""
    within = {hook: np.full((len(join.examples), len(MEASURES)), np.nan) for hook in (*join.hooks, ALL_HOOKS)}
    for pairs in join.pairs():
        finite = counts.add(pairs)
        kept.add(finite)
        for hook, chosen in _groups(join, finite.column):
            examples, found = measured_within(finite.where(chosen), resampling.top_k)
            within[hook][examples] = found
    groups = dict(_groups(join, counts.columns))
    once = _totals(join, counts.columns, np.ones((1, len(join.examples))))
    drawn: dict[tuple[str, str], list[Floats]] = {}
    for weights in resampling.weights(len(join.examples), 3 * len(counts.columns) + len(join.examples)):
        totals = _totals(join, counts.columns, weights)
        for hook, chosen in groups.items():
            drawn.setdefault((LATENTS, hook), []).append(measured_totals(totals, chosen, resampling.top_k))
            drawn.setdefault((WITHIN, hook), []).append(mean_within(within[hook], weights))
    agreement: list[Agreement] = []
    for over in (LATENTS, WITHIN):
        for hook, chosen in groups.items():
            if over == LATENTS:
                value = measured_totals(once, chosen, resampling.top_k)[0]
                count = np.full(len(MEASURES), len(chosen))
            else:
                value = mean_within(within[hook], np.ones((1, len(join.examples))))[0]
                count = np.isfinite(within[hook]).sum(0)
            agreement += _agreement(over, hook, value, resampling.interval(drawn.get((over, hook), [])), count)
    return agreement


def _examples(join: Join, counts: Counts, kept: Largest, resampling: Resampling) -> list[Agreement]:
    """Agreement of a number of each example."""
    left, right = join.values()
    nothing = np.zeros(len(left), np.int64)
    pairs = counts.add(Pairs(np.arange(len(left)), nothing, left, right))
    kept.add(pairs)
    once = measured_examples(pairs.left, pairs.right, np.ones((1, len(pairs.left))), resampling.top_k)[0]
    drawn = [
        measured_examples(pairs.left, pairs.right, weights[:, pairs.example], resampling.top_k)
        for weights in resampling.weights(len(left), len(left))
    ]
    return _agreement(EXAMPLES, ALL_HOOKS, once, resampling.interval(drawn), np.full(len(MEASURES), len(pairs.left)))


def _totals(join: Join, columns: Integers, weights: Floats) -> TotalsOf:
    totals = TotalsOf(columns, weights)
    for pairs in join.pairs():
        totals.add(pairs.where(pairs.finite))
    return totals


def _groups(join: Join, columns: Integers) -> Iterator[tuple[str, Integers]]:
    """The places of each hook's columns, and of all columns."""
    for i, hook in enumerate(join.hooks):
        yield hook, np.flatnonzero(join.hook_of(columns) == i)
    yield ALL_HOOKS, np.arange(len(columns))


def _agreement(over: str, hook: str, value: Floats, interval: Floats, count: Integers) -> list[Agreement]:
    return [
        Agreement(over, hook, name, float(value[i]), float(interval[0, i]), float(interval[1, i]), int(count[i]))
        for i, name in enumerate(MEASURES)
    ]


def _declared(store: AnalysisStore, name: str, side: str) -> Field:
    numbers = {f.name: f for f in store.fields.values() if f.stored and f.per in (Per.latent, Per.example)}
    if name not in numbers:
        raise StoreError(
            f"{side} has no field {name!r} per latent or per example. It has: {', '.join(numbers) or 'none'}."
        )
    found = numbers[name]
    if found.dtype == "string" or found.shape or found.ragged:
        raise StoreError(f"{side}'s field {found} is not one number for each {found.per}: it cannot be compared.")
    return found


def _check_data(left: AnalysisStore, right: AnalysisStore, names: tuple[str, str]) -> None:
    one, other = (_fingerprint(store.manifest.about) for store in (left, right))
    if one != other and one is not None and other is not None:
        raise StoreError(
            f"{names[0]} and {names[1]} are about different data ({one} and {other}): their examples of one number are "
            "not the same. Run both on one data set, or say `other_data=True` if you know that they match."
        )


def _fingerprint(about: Mapping[str, Any]) -> object:
    data = about.get("data")
    return data.get("fingerprint") if isinstance(data, Mapping) else about.get("data_fingerprint")
