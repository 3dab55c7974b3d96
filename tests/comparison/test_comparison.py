"""Comparisons of two stores against references that loop over dense arrays and resample by copying rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import stats

from interpretune import StoreError
from interpretune.comparison import compare_stores
from interpretune.comparison.agreement import average_ranks, overlap, pearson, signs, spearman
from interpretune.reports.plots import parity_scatter
from tests.sharing.stores import HOOKS, Dense, dense, store_of

RESAMPLES = 40
TOP_K = 4

# ------------------------------------------------------------------------------------------------------------ measures


def slow_pearson(x: Sequence[float], y: Sequence[float]) -> float:
    if len(x) < 2 or len(set(x)) < 2 or len(set(y)) < 2:
        return float("nan")
    return float(stats.pearsonr(x, y)[0])


def slow_spearman(x: Sequence[float], y: Sequence[float]) -> float:
    if len(x) < 2 or len(set(x)) < 2 or len(set(y)) < 2:
        return float("nan")
    return float(stats.spearmanr(x, y)[0])


def slow_overlap(x: Sequence[float], y: Sequence[float], k: int = TOP_K) -> float:
    one, other = (set([i for i in sorted(range(len(v)), key=lambda i: -abs(v[i])) if v[i] != 0][:k]) for v in (x, y))
    return len(one & other) / max(len(one), len(other)) if one or other else float("nan")


def slow_signs(x: Sequence[float], y: Sequence[float]) -> float:
    same = [(a > 0) == (b > 0) for a, b in zip(x, y, strict=True) if a != 0 and b != 0]
    return sum(same) / len(same) if same else float("nan")


SLOW: dict[str, Callable[[Sequence[float], Sequence[float]], float]] = {
    "pearson": slow_pearson,
    "spearman": slow_spearman,
    "top-k overlap": slow_overlap,
    "sign agreement": slow_signs,
}
FAST = {
    "pearson": pearson,
    "spearman": spearman,
    "top-k overlap": lambda *a: overlap(*a, TOP_K),
    "sign agreement": signs,
}


def numbers(draw: np.random.Generator, n: int, kind: str) -> np.ndarray:
    if kind == "ties":
        return draw.integers(-2, 3, n).astype(float)
    if kind == "constant":
        return np.full(n, 0.1)
    if kind == "tiny":
        return draw.normal(size=n) * 1e-180
    return np.where(draw.random(n) < 0.2, 0, draw.normal(size=n) + 0.3)


@pytest.mark.parametrize("measure", SLOW)
@pytest.mark.parametrize("kinds", [("plain", "plain"), ("ties", "ties"), ("constant", "ties"), ("tiny", "plain")])
@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_measures_with_weights_are_those_of_repeated_pairs(measure: str, kinds: tuple[str, str], n: int) -> None:
    draw = np.random.default_rng(n)
    x, y = (np.stack([numbers(draw, n, kind) for _ in range(5)]) for kind in kinds)
    weights = draw.integers(0, 4, (5, n)).astype(float)
    found = FAST[measure](x, y, weights)
    for row in range(5):
        times = weights[row].astype(int)
        if measure == "top-k overlap":  # a repeated pair is still one of the k
            times = times.clip(max=1)
        wanted = SLOW[measure](np.repeat(x[row], times).tolist(), np.repeat(y[row], times).tolist())
        if "tiny" in kinds and measure == "pearson" and not np.isnan(wanted):  # its squares leave float64 in scipy too
            wanted = SLOW[measure](np.repeat(x[row] * 1e180, times).tolist(), np.repeat(y[row], times).tolist())
        assert found[row] == pytest.approx(wanted, abs=1e-12, nan_ok=True)


def test_average_ranks_are_those_of_scipy() -> None:
    draw = np.random.default_rng(0)
    values = draw.integers(0, 5, (4, 30)).astype(float)
    np.testing.assert_array_equal(average_ranks(values, np.ones(30)), stats.rankdata(values, axis=1))


# ------------------------------------------------------------------------------------------------------------- latents


class Expected(NamedTuple):
    latents: dict[str, tuple[list[float], list[float]]]
    within: dict[str, list[tuple[list[float], list[float]]]]


def vectors(left: np.ndarray, right: np.ndarray) -> Expected:
    """Totals, and pairs of each example, from dense ``[example, hook, latent]``, by hook and for all."""
    groups = {**{hook: [i] for i, hook in enumerate(HOOKS)}, "all": list(range(len(HOOKS)))}
    latents, within = {}, {}
    for name, chosen in groups.items():
        x, y = (side[:, chosen].reshape(len(side), -1) for side in (left, right))
        there = (x != 0) | (y != 0)
        columns = there.any(0)
        latents[name] = (x.sum(0)[columns].tolist(), y.sum(0)[columns].tolist())
        within[name] = [(a[t].tolist(), b[t].tolist()) for a, b, t in zip(x, y, there, strict=True)]
    return Expected(latents, within)


def slow_values(left: np.ndarray, right: np.ndarray) -> dict[tuple[str, str, str], float]:
    found = {}
    expected = vectors(left, right)
    for measure, slow in SLOW.items():
        for hook in (*HOOKS, "all"):
            found["latents", hook, measure] = slow(*expected.latents[hook])
            each = [value for pair in expected.within[hook] if not np.isnan(value := slow(*pair))]
            found["within examples", hook, measure] = float(np.mean(each)) if each else float("nan")
    return found


def slow_intervals(left: np.ndarray, right: np.ndarray, seed: int) -> dict[tuple[str, str, str], tuple[float, float]]:
    drawn: dict[tuple[str, str, str], list[float]] = {}
    for i in range(RESAMPLES):
        rows = np.random.default_rng([seed, i]).integers(len(left), size=len(left))
        for key, value in slow_values(left[rows], right[rows]).items():
            drawn.setdefault(key, []).append(value)
    intervals = {}
    for key, values in drawn.items():
        defined = [value for value in values if not np.isnan(value)]
        intervals[key] = tuple(np.quantile(defined, [0.025, 0.975])) if defined else (float("nan"), float("nan"))
    return intervals


@cache
def slow_comparison() -> tuple[Any, Any]:
    """Values and intervals of the examples that two results share."""
    left, right = dense(1, range(14)).effects[3:], dense(2, range(3, 17), like=1).effects[:11]
    return slow_values(left, right), slow_intervals(left, right, seed=5)


@pytest.mark.parametrize(("batch_left", "batch_right", "shuffled"), [(3, 3, False), (4, 5, False), (2, 7, True)])
def test_agreement_and_intervals_are_those_of_a_loop(batch_left: int, batch_right: int, shuffled: bool) -> None:
    one, other = dense(1, range(14)), dense(2, range(3, 17), like=1)
    order = np.random.default_rng(0).permutation(14) if shuffled else None
    comparison = compare_stores(
        store_of(one, batch_left), store_of(other, batch_right, order), top_k=TOP_K, resamples=RESAMPLES, seed=5
    )
    left, right = one.effects[3:], other.effects[:11]
    values, intervals = slow_comparison()
    assert {(item.over, item.hook, item.measure) for item in comparison.agreement} == set(values)
    for item in comparison.agreement:
        key = (item.over, item.hook, item.measure)
        assert item.value == pytest.approx(values[key], abs=1e-6, nan_ok=True), key
        assert (item.low, item.high) == pytest.approx(intervals[key], abs=1e-6, nan_ok=True), key
    assert (comparison.examples, comparison.only_left, comparison.only_right) == (11, 3, 3)
    assert comparison.pairs == int(((left != 0) | (right != 0)).sum())
    assert comparison.pairs_left == int(((left != 0) & (right == 0)).sum())
    assert comparison.pairs_right == int(((left == 0) & (right != 0)).sum())


def test_intervals_do_not_depend_on_how_resamples_and_pairs_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = store_of(dense(1, range(12)), 4), store_of(dense(2, range(12), like=1), 4)
    whole = compare_stores(one, other, resamples=20).to_table()
    monkeypatch.setattr("interpretune.comparison.agreement._HELD", 700)
    monkeypatch.setattr("interpretune.comparison.agreement._AT_ONCE", 50)
    pieces = compare_stores(one, other, resamples=20).to_table()
    for name in ("value", "low", "high"):
        np.testing.assert_allclose(whole[name].to_numpy(), pieces[name].to_numpy(), rtol=1e-12)
    other_seed = compare_stores(one, other, resamples=20, seed=1).to_table()
    assert whole["low"].to_pylist() != other_seed["low"].to_pylist()
    assert whole["value"].to_pylist() == other_seed["value"].to_pylist()


def test_differences_are_those_of_dense_totals() -> None:
    one, other = dense(3, range(9)), dense(4, range(9), like=3)
    comparison = compare_stores(store_of(one, 4), store_of(other, 2), resamples=0, largest=7)
    table = comparison.latents.to_pylist()
    there = ((one.effects != 0) | (other.effects != 0)).any(0)
    assert len(table) == there.sum()
    for row in table:
        at = (slice(None), HOOKS.index(row["hook"]), row["latent"])
        assert row["left"] == pytest.approx(one.effects[at].sum(), abs=1e-6)
        assert row["right"] == pytest.approx(other.effects[at].sum(), abs=1e-6)
        assert row["difference"] == pytest.approx(row["left"] - row["right"], abs=1e-12)
        assert row["examples_left"] == (one.effects[at] != 0).sum()
        assert row["examples_right"] == (other.effects[at] != 0).sum()
    sizes = [abs(row["difference"]) for row in table]
    assert sizes == sorted(sizes, reverse=True)
    gap = np.abs(one.effects - other.effects)
    assert [abs(row["difference"]) for row in comparison.largest.to_pylist()] == pytest.approx(
        np.sort(gap.flatten())[::-1][:7].tolist()
    )
    for row in comparison.largest.to_pylist():
        at = (row["example"], HOOKS.index(row["hook"]), row["latent"])
        assert (row["left"], row["right"]) == pytest.approx((one.effects[at], other.effects[at]))


def test_batching_and_zeros_that_only_mark_what_is_alive_change_nothing() -> None:
    one, other = dense(5, range(8)), dense(6, range(8), like=5)
    first = compare_stores(store_of(one, 8), store_of(other, 8), resamples=0)
    second = compare_stores(store_of(one, 1), store_of(other, 3), resamples=0)
    np.testing.assert_allclose(first.to_table()["value"].to_numpy(), second.to_table()["value"].to_numpy())
    assert (
        first.latents.drop_columns(["left", "right", "difference"])
        .sort_by([("hook", "ascending"), ("latent", "ascending")])
        .equals(
            second.latents.drop_columns(["left", "right", "difference"]).sort_by(
                [("hook", "ascending"), ("latent", "ascending")]
            )
        )
    )
    assert (first.pairs, first.pairs_left, first.pairs_right) == (second.pairs, second.pairs_left, second.pairs_right)


def test_a_store_agrees_with_itself() -> None:
    store = store_of(dense(7, range(10)), 3)
    comparison = compare_stores(store, store, resamples=30)
    assert {(item.value, item.low, item.high) for item in comparison.agreement} == {(1.0, 1.0, 1.0)}
    assert set(comparison.latents["difference"].to_pylist()) == {0.0}
    assert (comparison.pairs_left, comparison.pairs_right) == (0, 0)


def test_constants_are_undefined_and_say_so_without_a_warning() -> None:
    flat = dense(1, range(5))
    flat.effects[:] = np.where(flat.active, 0.1, 0)
    flat.effects[:, :, 0] = 0.1
    flat.effects[:, :, 1:] = 0
    comparison = compare_stores(store_of(flat, 2), store_of(flat, 2), resamples=10)
    for hook in HOOKS:
        assert np.isnan(comparison.get("pearson", hook=hook).value)
        assert np.isnan(comparison.get("spearman", hook=hook).low)
        assert comparison.get("sign agreement", hook=hook).value == 1
    assert "undefined" in str(comparison)


def test_one_example_has_values_and_no_intervals() -> None:
    comparison = compare_stores(store_of(dense(1, [4]), 1), store_of(dense(2, [4, 5], like=1), 2))
    assert comparison.examples == 1
    assert not np.isnan(comparison.get("pearson").value)
    assert all(np.isnan(item.low) and np.isnan(item.high) for item in comparison.agreement)
    assert "[" not in str(comparison).split("Largest")[0]


def test_numbers_that_are_not_finite_are_left_out_and_counted() -> None:
    one, other = dense(1, range(6)), dense(2, range(6), like=1)
    at = tuple(np.argwhere(one.effects != 0)[0])
    one.effects[at] = np.nan
    without = compare_stores(store_of(one, 3), store_of(other, 3), resamples=20)
    assert without.not_finite == 1
    assert "1 more left out" in str(without)
    one.effects[at] = other.effects[at] = 0
    zeroed = compare_stores(store_of(one, 3), store_of(other, 3), resamples=20)
    for name in ("value", "low", "high"):
        np.testing.assert_allclose(without.to_table()[name].to_numpy(), zeroed.to_table()[name].to_numpy())


def test_a_latent_model_in_one_store_only_is_left_out_and_named() -> None:
    one, other = dense(1, range(6)), dense(2, range(6), like=1)
    both = compare_stores(store_of(one, 3), store_of(other, 3), resamples=0)
    one.effects[:, 1] = 0
    one.active[:, 1] = False
    fewer = compare_stores(store_of(one, 3, hooks=HOOKS[:1]), store_of(other, 3), resamples=0)
    assert fewer.hooks_apart == (HOOKS[1],)
    assert fewer.get("pearson", hook=HOOKS[0]).value == both.get("pearson", hook=HOOKS[0]).value
    assert fewer.get("pearson").value == both.get("pearson", hook=HOOKS[0]).value
    assert HOOKS[1] in str(fewer)


def test_a_latent_model_that_only_another_field_knows_is_not_zero_but_left_out() -> None:
    one, other = dense(1, range(6)), dense(2, range(6), like=1)
    both = compare_stores(store_of(one, 3), store_of(other, 3), resamples=0)
    fewer = compare_stores(store_of(one, 3, effects_at=HOOKS[1:]), store_of(other, 3), resamples=0)
    assert fewer.hooks_apart == (HOOKS[0],)
    assert fewer.get("pearson").value == both.get("pearson", hook=HOOKS[1]).value
    assert fewer.not_finite == 0


# ------------------------------------------------------------------------------------------------------------ examples


def test_a_field_of_examples_is_compared_by_example() -> None:
    one, other = dense(1, range(10)), dense(2, range(2, 12), like=1)
    comparison = compare_stores(
        store_of(one, 3), store_of(other, 4), "logit_diffs", top_k=TOP_K, resamples=RESAMPLES, seed=2
    )
    x, y = one.logit_diffs[2:], other.logit_diffs[:8]
    rows = [np.random.default_rng([2, i]).integers(8, size=8) for i in range(RESAMPLES)]
    for item in comparison.agreement:
        slow = SLOW[item.measure]
        assert item.over == "examples"
        assert item.value == pytest.approx(slow(x.tolist(), y.tolist()), abs=1e-6)
        if item.measure == "top-k overlap":
            rows = [np.unique(drawn) for drawn in rows]
        drawn = [slow(x[r].tolist(), y[r].tolist()) for r in rows]
        assert (item.low, item.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=1e-6)
        rows = [np.random.default_rng([2, i]).integers(8, size=8) for i in range(RESAMPLES)]
    assert comparison.latents is None
    top = comparison.largest.to_pylist()[0]
    place = int(np.abs(x - y).argmax())
    assert (top["example"], top["left"]) == (place + 2, pytest.approx(x[place]))


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (dense(1, range(3)), dense(2, range(3, 6)), {}), "left has 3, right 3"),
        (lambda: (dense(1, range(3)), dense(2, range(3)), {"field": "effect"}), "left has no field 'effect'.*effects"),
        (lambda: (dense(1, range(3)), dense(2, range(3)), {"right_field": "nothing"}), "right has no field 'nothing'"),
        (lambda: (dense(1, range(3)), dense(2, range(3)), {"field": "answer"}), "not one number for each example"),
        (lambda: (dense(1, range(3)), dense(2, range(3)), {"right_field": "logit_diffs"}), "per latent, right has"),
        (
            lambda: (dense(1, range(3)), dense(2, range(3), data="b"), {}),
            r"different data \(a and b\).*other_data=True",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(
    make: Callable[[], tuple[Dense, Dense, dict[str, str]]], message: str
) -> None:
    one, other, how = make()
    with pytest.raises(StoreError, match=message):
        compare_stores(store_of(one, 2), store_of(other, 2), **how)


def test_other_data_is_compared_when_asked() -> None:
    one, other = store_of(dense(1, range(3)), 2), store_of(dense(2, range(3), data="b"), 2)
    assert compare_stores(one, other, other_data=True, resamples=0).examples == 3


def test_an_example_twice_is_refused() -> None:
    one = dense(1, [0, 1, 1])
    with pytest.raises(StoreError, match="left has example 1 more than once"):
        compare_stores(store_of(one, 3), store_of(dense(1, range(3)), 3))


def test_stores_without_a_latent_model_in_common_are_refused() -> None:
    one, other = dense(1, range(3)), dense(2, range(3))
    with pytest.raises(StoreError, match=f"no latent model in common.*{HOOKS[0]}.*{HOOKS[1]}"):
        compare_stores(store_of(one, 3, hooks=HOOKS[:1]), store_of(other, 3, hooks=HOOKS[1:]))


# -------------------------------------------------------------------------------------------------------------- output


def test_the_print_names_stores_measures_and_differences() -> None:
    comparison = compare_stores(
        store_of(dense(1, range(8)), 4),
        store_of(dense(2, range(9), like=1), 4),
        names=("ablation", "attribution"),
        resamples=20,
        top_k=3,
    )
    text = str(comparison)
    assert text.startswith("effects per latent: ablation against attribution (in logits)")
    assert "8 examples in both; 0 only in ablation, 1 in attribution." in text
    assert "top-3 overlap" in text
    assert "95% intervals of 20 resamples" in text
    assert "Largest differences of totals (ablation less attribution)" in text
    table = comparison.to_table()
    assert table.column_names == ["over", "hook", "measure", "value", "low", "high", "count"]
    assert table.num_rows == len(comparison.agreement) == 2 * 3 * 4
    with pytest.raises(KeyError, match="There are: pearson over latents"):
        comparison.get("kendall")


def test_the_parity_scatter_plots_the_totals_of_both(tmp_path: Path) -> None:
    one, other = dense(1, range(8)), dense(2, range(8), like=1)
    comparison = compare_stores(store_of(one, 4), store_of(other, 4), names=("ablation", "attribution"), resamples=0)
    figure = parity_scatter(comparison, figure_dir=tmp_path)
    assert [file.name for file in tmp_path.glob("*.html")] == ["ablation-against-attribution.html"]
    points = [trace for trace in figure.data if trace.mode == "markers"]
    titles = [note.text for note in figure.layout.annotations]
    for i, hook in enumerate(HOOKS):
        x, y = one.effects[:, i].sum(0), other.effects[:, i].sum(0)
        alive = np.flatnonzero(((one.effects[:, i] != 0) | (other.effects[:, i] != 0)).any(0))
        assert list(points[i].customdata) == alive.tolist()
        np.testing.assert_allclose(points[i].x, x[alive], atol=1e-6)
        np.testing.assert_allclose(points[i].y, y[alive], atol=1e-6)
        assert titles[i] == f"{hook}<br>Pearson r = {comparison.get('pearson', hook=hook).value:.3f}"


def test_a_comparison_of_examples_has_no_parity_scatter() -> None:
    store = store_of(dense(1, range(3)), 3)
    with pytest.raises(StoreError, match="logit_diffs gives no totals of latents"):
        parity_scatter(compare_stores(store, store, "logit_diffs", resamples=0))
