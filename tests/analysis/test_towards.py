"""Effects towards one answer beside those towards the correct one, and how often each answer is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import interpretune as it
from interpretune import AnalysisError, StoreError
from interpretune.analysis import (
    AnalysisBatch,
    AnalysisCache,
    AnalysisCfg,
    AnalysisRunner,
    LatentValues,
    calculate_latent_metrics,
    compare_stores,
    count_answers,
    create_attribution_tables,
    display_latent_dashboards,
    effect_correlations,
    latent_metrics_scatter,
    parity_scatter,
    plot_latent_effects,
    run_analysis,
)
from tests.sessions import ANSWERS
from tests.tiny_latents import RandomDictionary

HOOK = "blocks.1.hook_resid_post.hook_sae_acts_post"
SAYS_YES, HELPS, RARE = 3, 5, 7
LABELS = np.array([0, 1, 0, 1, 1, 0, 1, 0])
PREDICTIONS = np.array([0, 0, 0, 0, 1, 0, 0, 0])


def planted(scale: float = 1.0, labels: np.ndarray = LABELS) -> AnalysisCache:
    """Balanced rows of which one latent says "Yes" (label 0) whatever they ask, and another helps a little."""
    towards_correct = np.where(labels == 0, 1.0, -1.0)
    effects = np.zeros((len(labels), 9))
    effects[:, SAYS_YES] = 0.5 * scale * towards_correct
    effects[:, HELPS] = 0.1
    effects[2, RARE] = 0.7
    active = torch.from_numpy((effects != 0).astype(float))
    cache = AnalysisCache()
    for rows in (slice(0, 3), slice(3, 8)):
        ids = active[rows].any(0).nonzero().flatten()
        cache.append(
            AnalysisBatch(
                labels=torch.from_numpy(labels[rows]) + 40,
                orig_labels=torch.from_numpy(labels[rows]),
                preds=torch.from_numpy(PREDICTIONS[rows]),
                logit_diffs=torch.from_numpy(towards_correct[rows]),
                activations={HOOK: LatentValues(ids, active[rows][:, ids], 9)},
                effects={HOOK: LatentValues(ids, torch.from_numpy(effects[rows])[:, ids], 9)},
            )
        )
    return cache


def totals(cache: AnalysisCache, **options: object) -> dict[int, float]:
    table = calculate_latent_metrics(cache, filter_by_correct=False, **options).tables[HOOK]
    return dict(zip(table.latents.tolist(), table.total_effect.tolist(), strict=True))


def test_a_latent_that_always_says_yes_shows_towards_yes() -> None:
    cache = planted()
    correct, yes, no = (totals(cache, towards=towards) for towards in ("correct", 0, 1))
    assert correct == pytest.approx({SAYS_YES: 0.0, HELPS: 0.8, RARE: 0.7}, abs=1e-12)
    assert yes == pytest.approx({SAYS_YES: 4.0, HELPS: 0.0, RARE: 0.7}, abs=1e-12)
    assert no == pytest.approx({latent: -value for latent, value in yes.items()}, abs=1e-12)
    assert totals(cache) == correct


def test_answers_are_asked_for_by_word_or_label() -> None:
    cache = planted()
    cache.answers = (" Yes", " No")
    for towards in (0, " Yes", "Yes"):
        assert totals(cache, towards=towards)[SAYS_YES] == pytest.approx(4.0)
    assert totals(cache, towards="No")[SAYS_YES] == pytest.approx(-4.0)


def test_tables_rank_by_the_answer_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    cache = planted()
    cache.answers = (" Yes", " No")
    metrics = calculate_latent_metrics(cache, filter_by_correct=False, run_name="ablation", towards=" Yes")
    ((title, table),) = create_attribution_tables(metrics, filter_type="positive").items()
    assert title == f"Top positive ablation effects towards ' Yes' at {HOOK} (8 examples of 8)"
    first = [cell.strip() for cell in table.splitlines()[3].strip("|").split("|")]
    assert (int(first[0]), float(first[1]), float(first[2])) == (SAYS_YES, 4.0, 0.5)
    display_latent_dashboards(metrics, "Dashboards")
    assert f"latent {SAYS_YES}, total effect towards ' Yes' +4.0000" in capsys.readouterr().out


def test_figures_show_the_answer_that_is_asked_for(tmp_path: Path) -> None:
    (figure,) = plot_latent_effects(planted(), title="Effects", figure_dir=tmp_path, towards=0)
    assert list(figure.data[0].customdata) == [SAYS_YES, RARE, HELPS]
    np.testing.assert_allclose(figure.data[0].y, [0.5, 0.7 / 8, 0], atol=1e-12)
    assert figure.layout.yaxis.title.text == "effect per example (logits)"
    assert "towards answer 0" in figure.layout.title.text
    assert (tmp_path / "effects-towards-answer-0.html").exists()


def test_mean_effect_is_over_examples_with_the_latent(tmp_path: Path) -> None:
    cache = planted()
    table = calculate_latent_metrics(cache, filter_by_correct=False).tables[HOOK]
    means = dict(zip(table.latents.tolist(), table.mean_effect.tolist(), strict=True))
    (figure,) = plot_latent_effects(cache, figure_dir=tmp_path)
    bars = dict(zip(figure.data[0].customdata, figure.data[0].y, strict=True))
    assert (means[RARE], bars[RARE]) == pytest.approx((0.7, 0.7 / 8))
    assert "mean" not in (figure.layout.yaxis.title.text + figure.data[0].hovertemplate)


def test_effects_towards_different_answers_are_not_compared(tmp_path: Path) -> None:
    correct, yes = (calculate_latent_metrics(planted(), towards=towards) for towards in ("correct", 0))
    with pytest.raises(AnalysisError, match="the same towards"):
        effect_correlations(correct, yes)
    figure = latent_metrics_scatter(yes, yes, figure_dir=tmp_path)
    assert "total effect towards answer 0 (logits)" in figure.layout.xaxis.title.text


def test_stores_are_compared_towards_an_answer(tmp_path: Path) -> None:
    left, right = planted(), planted(scale=0.5)
    left.answers = (" Yes", " No")
    stores = [cache.write(tmp_path / name) for cache, name in ((left, "left"), (right, "right"))]
    found = compare_stores(*stores, towards="Yes", resamples=20)
    rows = {row["latent"]: (row["left"], row["right"]) for row in found.latents.to_pylist()}
    assert rows[SAYS_YES] == pytest.approx((4.0, 2.0))
    assert rows[HELPS] == pytest.approx((0.0, 0.0), abs=1e-12)
    assert "effects towards ' Yes' per latent" in str(found)
    assert "towards ' Yes'" in parity_scatter(found, tmp_path).layout.xaxis.title.text
    as_stored = {row["latent"]: row["left"] for row in compare_stores(*stores, resamples=0).latents.to_pylist()}
    assert as_stored[SAYS_YES] == pytest.approx(0.0)
    diffs = compare_stores(*stores, "logit_diffs", towards=0, resamples=0)
    assert diffs.largest["left"].to_pylist() == [1.0] * 8
    with pytest.raises(StoreError, match="activations is the same whichever answer is correct"):
        compare_stores(*stores, "activations", towards=0)


def test_unknown_answers_are_refused_with_those_there_are(tmp_path: Path) -> None:
    cache = planted()
    with pytest.raises(AnalysisError, match="do not say how their answers are spelt.*the label 0 or 1"):
        totals(cache, towards="Yes")
    cache.answers = (" Yes", " No")
    with pytest.raises(AnalysisError, match=r"towards='Maybe' is no answer.*\[' Yes', ' No'\]"):
        totals(cache, towards="Maybe")
    with pytest.raises(AnalysisError, match="towards=2 is no answer"):
        plot_latent_effects(cache, figure_dir=tmp_path, towards=2)
    with pytest.raises(AnalysisError, match="two answers; these examples have the label 2"):
        totals(planted(labels=LABELS + 1), towards=0)


def test_answers_given_are_counted_by_label() -> None:
    cache = planted()
    cache.answers = (" Yes", " No")
    counts = count_answers(cache)
    assert counts.names == (" Yes", " No")
    assert counts.counts.tolist() == [[4, 0], [3, 1]]
    assert (counts.given.tolist(), counts.labels.tolist()) == ([7, 1], [4, 4])
    assert counts.as_rows()[-1] == {"correct answer": "all", "rows": 8, "answered ' Yes'": 7, "answered ' No'": 1}
    assert count_answers(planted()).names == ("answer 0", "answer 1")


def test_results_of_a_session_know_their_answers(session_of: Callable[..., it.ITSession], tmp_path: Path) -> None:
    session = session_of("gpt2", "core", "left")
    session.module.latent_models = [RandomDictionary("blocks.1.hook_resid_post", seed=3)]
    cache = run_analysis(**session, analysis_cfg=AnalysisCfg(mode="ablation"))
    stored = AnalysisCache.of(AnalysisRunner(**session, root=tmp_path).run({"ablation": "ablation"})["ablation"])
    assert cache.answers == stored.answers == ANSWERS
    assert AnalysisCache.of(cache.write(tmp_path / "written")).answers == ANSWERS
    labels = torch.cat(cache.orig_labels)
    for one in (cache, stored):
        table = calculate_latent_metrics(one, towards=ANSWERS[1]).tables[HOOK]
        dense = torch.cat([batch[HOOK].dense() for batch in one.effects]).double()
        wanted = torch.where(labels == 1, 1.0, -1.0).double() @ dense
        torch.testing.assert_close(table.total_effect, wanted[table.latents], rtol=0, atol=1e-12)
    assert wanted.abs().max() > 1e-3


def test_totals_of_float64_effects_are_exact_to_float64() -> None:
    cache = planted(scale=1 / 3)
    dense = torch.cat([batch[HOOK].dense() for batch in cache.effects]).numpy()
    for towards, signs in (("correct", np.ones(8)), (0, np.where(LABELS == 0, 1, -1))):
        table = calculate_latent_metrics(cache, towards=towards).tables[HOOK]
        wanted = (signs[:, None] * dense).sum(0)[table.latents.numpy()]
        np.testing.assert_allclose(table.total_effect.numpy(), wanted, rtol=0, atol=1e-12)
