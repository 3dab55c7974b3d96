"""Summaries of sparse results against dense numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interpretune import AnalysisError
from interpretune.analysis import (
    AnalysisBatch,
    AnalysisCache,
    AnalysisMode,
    LatentValues,
    calc_activation_summary,
    calculate_latent_metrics,
    compute_correct,
    effect_correlations,
)
from tests.tiny_results import D_SAE, LOWER, UPPER, RandomResults


@pytest.fixture
def results() -> RandomResults:
    return RandomResults(seed=0)


@pytest.fixture
def others() -> RandomResults:
    """Effects of another analysis; other latents are alive."""
    return RandomResults(seed=2)


def test_correct_answers_are_counted(results: RandomResults) -> None:
    summary = compute_correct(results.cache)
    correct = int((results.predictions == results.labels).sum())
    assert 0 < correct < len(results.labels)
    assert summary.total_correct == correct
    assert summary.percentage_correct == pytest.approx(100 * correct / len(results.labels))
    assert (
        np.concatenate([batch.numpy() for batch in summary.batch_predictions]).tolist() == results.predictions.tolist()
    )


@pytest.mark.parametrize("name", [LOWER, UPPER])
def test_activation_summary_is_that_of_dense_activations(results: RandomResults, name: str) -> None:
    summary = calc_activation_summary(results.cache)
    dense = results.activations[name]
    alive = np.flatnonzero((dense > 0).any(0))
    active = (dense > 0).sum(0)[alive]
    assert summary.latents[name].tolist() == alive.tolist()
    assert summary.num_samples_active[name].tolist() == active.tolist()
    np.testing.assert_allclose(summary.mean_activation[name], dense.sum(0)[alive] / active, rtol=1e-5)
    assert summary.num_samples == len(results.labels)


@pytest.mark.parametrize("name", [LOWER, UPPER])
def test_contexts_are_the_prompts_in_which_a_latent_is_most_active(results: RandomResults, name: str) -> None:
    summary = calc_activation_summary(results.cache)
    for latent in summary.latents[name].tolist():
        peaks = results.peaks[name][:, latent]
        wanted = [i for i in np.argsort(-peaks, kind="stable")[:3] if peaks[i] > 0]
        found = summary.contexts[name][latent]
        assert [item.example for item in found] == wanted
        assert [item.position for item in found] == [results.peak_positions[name][i, latent] for i in wanted]
        for item in found:
            assert item.tokens.tolist() == results.tokens[item.example].tolist()


@pytest.mark.parametrize("name", [LOWER, UPPER])
@pytest.mark.parametrize("filtered", [True, False])
def test_latent_metrics_are_those_of_dense_effects(results: RandomResults, name: str, filtered: bool) -> None:
    metrics = calculate_latent_metrics(
        results.cache, compute_correct(results.cache), filter_by_correct=filtered, run_name="ablation"
    )
    chosen = results.predictions == results.labels if filtered else np.ones(len(results.labels), bool)
    effects, dense = results.effects[name], results.activations[name]
    alive = np.flatnonzero((dense > 0).any(0))
    times = (dense[chosen] > 0).sum(0)[alive]
    table = metrics.tables[name]
    assert table.latents.tolist() == alive.tolist()
    np.testing.assert_allclose(table.total_effect, effects[chosen].sum(0)[alive], atol=1e-5)
    np.testing.assert_allclose(table.mean_effect, effects[chosen].sum(0)[alive] / np.maximum(times, 1), atol=1e-5)
    assert table.num_samples_active.tolist() == (dense > 0).sum(0)[alive].tolist()
    np.testing.assert_allclose(table.proportion_samples_active, (dense > 0).mean(0)[alive], rtol=1e-5)
    assert f"{chosen.sum()} " in metrics.selection
    assert metrics.selection.endswith(f"of {len(chosen)}")
    assert ("correct" in metrics.selection) is filtered


def cache_of_one_latent(values: list[list[float]]) -> AnalysisCache:
    """Batches in which activations, effects and peaks of latent 3 are the same numbers."""
    cache, ids = AnalysisCache(), torch.tensor([3])
    for numbers in values:
        column = torch.tensor(numbers, dtype=torch.float64).unsqueeze(-1)
        labels, latents = torch.zeros(len(numbers), dtype=torch.long), {LOWER: LatentValues(ids, column, D_SAE)}
        starts = {LOWER: LatentValues(ids, torch.zeros_like(column).long(), D_SAE)}
        cache.append(
            AnalysisBatch(
                labels=labels,
                orig_labels=labels,
                activations=latents,
                effects=latents,
                peak_values=latents,
                peak_positions=starts,
            )
        )
    return cache


def test_sums_keep_small_effects_beside_a_large_one() -> None:
    metrics = calculate_latent_metrics(cache_of_one_latent([[2.0**24, 1.0], [1.0, 1.0]]))
    assert metrics.tables[LOWER].total_effect.tolist() == [2.0**24 + 3]


def test_of_equal_peaks_the_first_prompts_are_kept() -> None:
    summary = calc_activation_summary(cache_of_one_latent([[1.0], [2.0], [1.0], [1.0]]))
    assert [item.example for item in summary.contexts[LOWER][3]] == [1, 0, 2]


def test_without_predictions_all_examples_count(results: RandomResults) -> None:
    found = calculate_latent_metrics(results.cache).tables[LOWER].total_effect
    wanted = calculate_latent_metrics(results.cache, filter_by_correct=False).tables[LOWER].total_effect
    assert torch.equal(found, wanted)
    filtered = calculate_latent_metrics(results.cache, compute_correct(results.cache)).tables[LOWER].total_effect
    assert not torch.allclose(found, filtered)


def test_activations_may_come_from_another_analysis(results: RandomResults, others: RandomResults) -> None:
    metrics = calculate_latent_metrics(results.cache, activation_summary=calc_activation_summary(others.cache))
    alive = np.flatnonzero((results.activations[LOWER] > 0).any(0))
    dense = others.activations[LOWER][:, alive]
    active = (dense > 0).sum(0)
    assert (active == 0).any()
    np.testing.assert_allclose(metrics.tables[LOWER].mean_activation, dense.sum(0) / np.maximum(active, 1), rtol=1e-5)
    assert metrics.tables[LOWER].num_samples_active.tolist() == active.tolist()


def test_correlations_are_over_latents_that_both_know(results: RandomResults, others: RandomResults) -> None:
    found = effect_correlations(*(calculate_latent_metrics(item.cache) for item in (results, others)))
    for name in (LOWER, UPPER):
        both = np.flatnonzero((results.activations[name] > 0).any(0) & (others.activations[name] > 0).any(0))
        assert 3 < len(both) < D_SAE
        x, y = results.effects[name].sum(0)[both], others.effects[name].sum(0)[both]
        assert found[name] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-5)
    same = effect_correlations(calculate_latent_metrics(results.cache), calculate_latent_metrics(results.cache))
    assert list(same.values()) == pytest.approx([1.0, 1.0])


def test_empty_caches_say_what_to_run(results: RandomResults) -> None:
    with pytest.raises(AnalysisError, match="ablation is empty"):
        compute_correct(AnalysisCache(), AnalysisMode.ablation)
    with pytest.raises(AnalysisError, match="any mode but clean_no_sae"):
        calc_activation_summary(AnalysisCache())
    with pytest.raises(AnalysisError, match="ablation or attr_patching"):
        calculate_latent_metrics(results.without_effects())
