"""Tables, figures, dashboards and files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from interpretune import AnalysisError, StoreError
from interpretune.analysis import (
    AnalysisBatch,
    AnalysisCache,
    SaveCfg,
    calculate_latent_metrics,
    compute_correct,
    create_attribution_tables,
    display_latent_dashboards,
    display_ref_vs_sae_logit_diffs,
    effect_correlations,
    latent_metrics_scatter,
    plot_latent_effects,
)
from interpretune.reports.dashboards import page_of
from tests.sessions import padded
from tests.tiny import VOCABULARY, tiny_tokenizer
from tests.tiny_results import LOWER, PAGE, UPPER, RandomResults


@pytest.fixture
def results() -> RandomResults:
    return RandomResults(seed=0)


def rows_of(table: str) -> list[list[str]]:
    """Cells of a printed table, without its header."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


# -------------------------------------------------------------------------------------------------------------- tables


def extremes(results: RandomResults, name: str, sign: str, k: int) -> list[tuple[int, float]]:
    totals = results.effects[name].sum(0)
    order = np.argsort(-totals if sign == "positive" else totals, kind="stable")[:k]
    return [(int(i), totals[i]) for i in order if (totals[i] > 0) == (sign == "positive")]


def test_attribution_tables_hold_the_largest_effects_of_each_sign(results: RandomResults) -> None:
    metrics = calculate_latent_metrics(results.cache, filter_by_correct=False, run_name="ablation")
    tables = create_attribution_tables(metrics, top_k=4)
    assert list(tables) == [
        f"Top {sign} ablation effects at {name} (8 examples of 8)"
        for sign in ("positive", "negative")
        for name in (LOWER, UPPER)
    ]
    for title, table in tables.items():
        sign, name = title.split()[1], title.split()[5]
        found = [(int(row[0]), float(row[1])) for row in rows_of(table)]
        wanted = extremes(results, name, sign, 4)
        assert [latent for latent, _ in found] == [latent for latent, _ in wanted]
        np.testing.assert_allclose([e for _, e in found], [e for _, e in wanted], atol=1e-4)


def test_one_table_for_all_latent_models_names_their_places(results: RandomResults) -> None:
    metrics = calculate_latent_metrics(results.cache, compute_correct(results.cache), run_name="patching")
    tables = create_attribution_tables(metrics, top_k=6, filter_type="negative", per_sae=False)
    ((title, table),) = tables.items()
    correct = int((results.predictions == results.labels).sum())
    assert title == f"Top negative patching effects ({correct} correctly answered examples of 8)"
    chosen = results.predictions == results.labels
    every = [(e, n, i) for n in (LOWER, UPPER) for i, e in enumerate(results.effects[n][chosen].sum(0)) if e < 0]
    assert [(row[0], int(row[1])) for row in rows_of(table)] == [(n, i) for _, n, i in sorted(every)[:6]]


def clean_and_spliced(n: int) -> tuple[AnalysisCache, AnalysisCache, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(n)
    numbers = draw.normal(size=(2, n))
    caches = []
    for row in numbers:
        cache = AnalysisCache()
        for part in np.array_split(np.arange(n), 3):
            labels = torch.from_numpy(part % 2)
            cache.append(
                AnalysisBatch(
                    labels=labels,
                    orig_labels=labels,
                    logit_diffs=torch.from_numpy(row[part]),
                    prompts=[f"prompt {i} " + "long " * 40 for i in part],
                )
            )
        caches.append(cache)
    return caches[0], caches[1], numbers[0], numbers[1]


def test_largest_changes_of_logit_differences_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    clean, spliced, before, after = clean_and_spliced(10)
    table = display_ref_vs_sae_logit_diffs(sae=spliced, no_sae_ref=clean, top_k=4)
    assert table in capsys.readouterr().out
    wanted = np.argsort(-np.abs(after - before))[:4]
    rows = rows_of(table)
    assert [int(row[0]) for row in rows] == wanted.tolist()
    for i, row in zip(wanted, rows, strict=True):
        assert row[1].startswith(f"prompt {i} long")
        assert row[1].endswith("...")
        assert int(row[2]) == i % 2
        np.testing.assert_allclose([float(x) for x in row[3:]], [before[i], after[i], after[i] - before[i]], atol=6e-4)


def test_prompts_are_decoded_from_tokens_where_only_those_were_saved() -> None:
    clean, spliced, _, _ = clean_and_spliced(3)
    tokenizer = tiny_tokenizer()
    clean.batches = [replace(batch, prompts=None) for batch in clean.batches]
    tokens = [[torch.tensor([VOCABULARY[w] for w in ("<bos>", "Ada", "sees")] + [50 + i])] for i in range(3)]
    spliced.batches = [
        replace(batch, prompts=None, tokens=row) for batch, row in zip(spliced.batches, tokens, strict=True)
    ]
    table = display_ref_vs_sae_logit_diffs(spliced, clean, tokenizer)
    assert sorted(row[1] for row in rows_of(table)) == sorted(
        tokenizer.decode([VOCABULARY["Ada"], VOCABULARY["sees"], 50 + i]) for i in range(3)
    )


def test_analyses_of_unequal_length_are_not_compared() -> None:
    clean, _, _, _ = clean_and_spliced(10)
    _, spliced, _, _ = clean_and_spliced(9)
    with pytest.raises(AnalysisError, match="9 and 10 examples"):
        display_ref_vs_sae_logit_diffs(spliced, clean)


# ------------------------------------------------------------------------------------------------------------- figures


def test_effect_plots_are_files_with_the_latents_in_order(results: RandomResults, tmp_path: Path) -> None:
    (figure,) = plot_latent_effects(results.cache, title="Effects of ablation", figure_dir=tmp_path)
    html = (tmp_path / "effects-of-ablation.html").read_text()
    for name, bars in zip((LOWER, UPPER), figure.data, strict=True):
        assert name in html
        alive = np.flatnonzero((results.activations[name] > 0).any(0))
        means = results.effects[name].mean(0)[alive]
        order = np.argsort(-means, kind="stable")
        assert list(bars.customdata) == alive[order].tolist()
        assert str(list(bars.customdata)).replace(" ", "") in html.replace(" ", "")
        np.testing.assert_allclose(bars.y, means[order], atol=1e-6)


def test_one_plot_for_each_batch(results: RandomResults, tmp_path: Path) -> None:
    figures = plot_latent_effects(results.cache, per_batch=True, title="Effects", figure_dir=tmp_path)
    names = {path.name for path in tmp_path.glob("*.html")}
    assert names == {f"effects-batch-{i}.html" for i in range(3)}
    alive = results.cache.alive_latents[1][LOWER]
    assert sorted(figures[1].data[0].customdata) == alive.tolist()
    np.testing.assert_allclose(
        sorted(figures[1].data[0].y), sorted(results.effects[LOWER][4:7].mean(0)[alive.numpy()]), atol=1e-6
    )


def test_plots_of_an_analysis_without_effects_are_refused(results: RandomResults, tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="ablation or attr_patching"):
        plot_latent_effects(results.without_effects(), figure_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_scatter_shows_shared_latents_and_their_correlation(results: RandomResults, tmp_path: Path) -> None:
    one, other = (calculate_latent_metrics(item.cache) for item in (results, RandomResults(seed=2)))
    figure = latent_metrics_scatter(one, other, "ablation", "patching", figure_dir=tmp_path)
    html = (tmp_path / "ablation-against-patching.html").read_text()
    points = [trace for trace in figure.data if trace.mode == "markers"]
    for name, trace in zip((LOWER, UPPER), points, strict=True):
        both = sorted(set(one.tables[name].latents.tolist()) & set(other.tables[name].latents.tolist()))
        assert list(trace.customdata) == both
        np.testing.assert_allclose(trace.x, results.effects[name].sum(0)[both], atol=1e-5)
        np.testing.assert_allclose(trace.y, RandomResults(seed=2).effects[name].sum(0)[both], atol=1e-5)
        assert f"{effect_correlations(one, other)[name]:.3f}" in html


# ---------------------------------------------------------------------------------------------------------- dashboards


def test_dashboards_link_to_published_pages_and_quote_prompts_otherwise(
    results: RandomResults, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer()
    metrics = calculate_latent_metrics(results.cache, filter_by_correct=False)
    shown = display_latent_dashboards(metrics, "Dashboards", sae_release="a release", top_k=2, tokenizer=tokenizer)
    out = capsys.readouterr().out
    assert "Dashboards (a release)" in out
    wanted = {
        name: [latent for sign in ("positive", "negative") for latent, _ in extremes(results, name, sign, 2)]
        for name in (LOWER, UPPER)
    }
    assert shown[len(wanted[LOWER]) :] == [PAGE.format(latent=latent) for latent in wanted[UPPER]]
    for latent, body in zip(wanted[LOWER], shown, strict=False):
        assert f"{LOWER}, latent {latent}" in out
        example = int(results.peaks[LOWER][:, latent].argmax())
        position = results.peak_positions[LOWER][example, latent]
        lines = [" ".join(line.split()) for line in body.splitlines()]
        row = next(line for line in lines if line.startswith(f"{example} "))
        assert lines.index(row) == 2  # below the header and its rule: the most active prompt comes first
        assert f"{results.peaks[LOWER][example, latent]:.3f}" in row
        assert f"[[{tokenizer.decode([results.tokens[example][position]])}]]" in row


def test_dashboards_without_saved_tokens_say_how_to_save_them(results: RandomResults) -> None:
    bare = AnalysisCache(batches=[replace(batch, tokens=None) for batch in results.cache.batches])
    shown = display_latent_dashboards(calculate_latent_metrics(bare), "Dashboards")
    assert "SaveCfg(tokens=True)" in shown[0]


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert({latent})",
        "data:text/html,{latent}",
        "file:///etc/passwd?{latent}",
        "//example.org/{latent}",
        "https:///{latent}",
        "http://[{latent}",
        " javascript:alert(1)//http://{latent}",
    ],
)
def test_pages_that_are_not_of_the_web_are_passed_over(results: RandomResults, url: str) -> None:
    assert page_of(url, 7) is None
    foreign = AnalysisCache(batches=[replace(batch, dashboard_urls={UPPER: url}) for batch in results.cache.batches])
    shown = display_latent_dashboards(calculate_latent_metrics(foreign, filter_by_correct=False), "Dashboards")
    assert shown == [body for body in shown if "most active at" in body]


@pytest.mark.parametrize(
    ("url", "page"),
    [
        ("https://example.org/{latent}", "https://example.org/7"),
        ("https://example.org/{x:>4000000000}/{latent}", "https://example.org/%7Bx:%3E4000000000%7D/7"),
        ("https://example.org/{0.__class__}/{latent}", "https://example.org/%7B0.__class__%7D/7"),
        ("https://example.org/{latent}?a=b#c%20d", "https://example.org/7?a=b#c%20d"),
        ('https://example.org/{latent}" onload="alert(1)', "https://example.org/7%22%20onload=%22alert(1)"),
        ("https://example.org/</iframe><script>{latent}", "https://example.org/%3C/iframe%3E%3Cscript%3E7"),
    ],
)
def test_addresses_of_pages_are_neither_formatted_nor_markup(url: str, page: str) -> None:
    assert page_of(url, 7) == page


# --------------------------------------------------------------------------------------------------------------- files


def test_results_are_written_as_parquet_and_read_without_interpretune(results: RandomResults, tmp_path: Path) -> None:
    store = results.cache.write(tmp_path / "deep" / "down")
    store.verify()
    rows = pq.read_table(tmp_path / "deep" / "down" / "shards").sort_by("example")
    assert rows["example"].to_pylist() == list(range(8))
    assert rows["orig_labels"].to_pylist() == results.labels.tolist()
    assert rows["preds"].to_pylist() == results.predictions.tolist()
    np.testing.assert_allclose(rows["logit_diffs"], results.logit_diffs, rtol=1e-6)
    shown = {"activations": results.activations, "effects": results.effects, "peak_values": results.peaks}
    dense = {(name, what): np.zeros_like(results.effects[name]) for name in (LOWER, UPPER) for what in shown}
    for example, latents in enumerate(rows["latents"].to_pylist()):
        for entry in latents:
            for what in shown:
                dense[entry["hook"], what][example, entry["latent"]] = entry[what]
    for (name, what), found in dense.items():
        np.testing.assert_allclose(found, shown[what][name], rtol=1e-6)


def test_a_cache_over_a_folder_gives_what_the_cache_in_memory_gives(results: RandomResults, tmp_path: Path) -> None:
    results.cache.write(tmp_path / "store")
    stored = AnalysisCache.of(tmp_path / "store")
    both = [calculate_latent_metrics(cache, filter_by_correct=False) for cache in (stored, results.cache)]
    for name in (LOWER, UPPER):
        found, wanted = (item.tables[name] for item in both)
        for column in type(wanted).__attrs_attrs__:
            assert torch.equal(getattr(found, column.name), getattr(wanted, column.name)), column.name
    assert both[0].summary.dashboard_urls == {UPPER: PAGE}
    assert [len(batch) for batch in stored.batches] == [len(batch) for batch in results.cache.batches]
    assert stored.batches[-1].orig_labels.tolist() == results.cache.orig_labels[-1].tolist()
    with pytest.raises(AnalysisError, match=r"This cache is a view of a store"):
        stored.append(results.cache.batches[0])
    with pytest.raises(AnalysisError, match=r"The cache is empty"):
        AnalysisCache().write(tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    with pytest.raises(StoreError, match=r"store holds results already"):
        results.without_effects().write(tmp_path / "store")


def test_saving_keeps_what_was_asked_for_and_leaves_the_batch_alone() -> None:
    tokenizer = tiny_tokenizer()
    rows = [torch.tensor([VOCABULARY[word] for word in text.split()]) for text in ("<bos> Ada sees", "<bos> Bo")]
    batch = AnalysisBatch(
        labels=torch.tensor([1, 2]),
        orig_labels=torch.tensor([0, 1]),
        logit_diffs=torch.zeros(2, requires_grad=True),
        answer_logits=torch.zeros(2, 5),
    )
    for side in ("left", "right"):
        kept, bare = AnalysisCache(SaveCfg(prompts=True, tokens=True, intermediates=True)), AnalysisCache()
        for cache in (kept, bare):
            cache.save(batch, padded(rows, side, tokenizer.pad_token_id), tokenizer)
        assert kept.prompts == [["Ada sees", "Bo"]]
        assert [row.tolist() for row in kept.tokens[0]] == [row.tolist() for row in rows]
        assert kept.answer_logits[0].shape == (2, 5)
        assert (bare.prompts, bare.tokens, bare.answer_logits) == ([None], [None], [None])
        assert not kept.logit_diffs[0].requires_grad
    assert batch.tokens is None
    assert batch.answer_logits is not None
