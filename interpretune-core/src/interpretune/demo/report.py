"""The demo's report: tables on the console, figures, and the figures of the summary."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import asdict, evolve
from rich.console import Console

from interpretune.analysis.cache import AnalysisCache
from interpretune.analysis.direction import CORRECT
from interpretune.analysis.modes import AnalysisMode
from interpretune.latents.quality import LatentQuality
from interpretune.reports.answer_counts import count_answers
from interpretune.reports.dashboards import display_latent_dashboards
from interpretune.reports.metrics import (
    ActivationSummary,
    LatentMetrics,
    calc_activation_summary,
    calculate_latent_metrics,
    compute_correct,
    effect_correlations,
)
from interpretune.reports.plots import latent_metrics_scatter, plot_latent_effects
from interpretune.reports.sections import finite_or_none, report_sections, table_text
from interpretune.reports.tables import create_attribution_tables, display_ref_vs_sae_logit_diffs

if TYPE_CHECKING:
    from interpretune.demo.run import DemoOptions
    from interpretune.session.session import ITSession


def write_report(
    session: ITSession,
    options: DemoOptions,
    caches: Mapping[AnalysisMode, AnalysisCache],
    quality: Sequence[LatentQuality],
    console: Console,
) -> dict[str, Any]:
    """Print the tables, save figures and Parquet files, and return the figures of the summary."""
    tokenizer, figures = session.datamodule.tokenizer, options.output / "figures"
    for section in report_sections(session.module):
        _table(console, section.title, section.rows)
    _table(
        console,
        "Faithfulness of the latent models, each alone, on rows to analyse",
        [item.as_row() for item in quality],
    )
    console.rule("Clean against spliced logit differences, largest changes")
    clean, spliced = caches[AnalysisMode.clean_no_sae], caches[AnalysisMode.clean_w_sae]
    with _through(console):
        display_ref_vs_sae_logit_diffs(sae=spliced, no_sae_ref=clean, tokenizer=tokenizer, top_k=options.top_k)
    predictions = {mode: compute_correct(cache, mode) for mode, cache in caches.items()}
    correct = [
        {
            "mode": str(m),
            "rows": sum(map(len, p.batch_predictions)),
            "correct": p.total_correct,
            "percent": p.percentage_correct,
        }
        for m, p in predictions.items()
    ]
    _table(console, "Correct answers by mode", correct)
    given = {mode: count_answers(cache) for mode, cache in caches.items()}
    for mode, counts in given.items():
        if mode in (AnalysisMode.clean_no_sae, AnalysisMode.clean_w_sae):
            _table(console, f"Answers given in {mode}", counts.as_rows())
    contexts = calc_activation_summary(spliced)
    attribution = caches[AnalysisMode.attr_patching]
    ablated = len(caches[AnalysisMode.ablation].batches)
    compared = attribution
    if ablated < len(attribution.batches):
        compared = AnalysisCache(batches=attribution.batches[:ablated])
    asked = tuple(dict.fromkeys((CORRECT, asked_answer(options))))
    analyses = {"ablation": caches[AnalysisMode.ablation], "attribution patching": attribution}
    metrics = {
        (name, towards): _effects(cache, name, contexts, towards)
        for towards in asked
        for name, cache in analyses.items()
    }
    same_rows = _effects(compared, "attribution patching", contexts)
    correlations = effect_correlations(metrics["ablation", CORRECT], same_rows)
    for towards in asked:
        ablation = metrics["ablation", towards]
        console.rule(f"Effects towards {ablation.direction.name}")
        with _through(console):
            for name in analyses:
                for title, table in create_attribution_tables(metrics[name, towards], top_k=options.top_k).items():
                    print(f"\n{title}\n{table}")
            print()
            display_latent_dashboards(
                ablation,
                "What the latents with the largest effects are active on",
                sae_release=options.sae_release,
                top_k=1,
                tokenizer=tokenizer,
            )
    with _through(console):
        for towards in asked if options.towards is not None else [CORRECT]:
            for name, cache in analyses.items():
                plot_latent_effects(cache, title=f"{name.capitalize()} effects", figure_dir=figures, towards=towards)
        latent_metrics_scatter(
            metrics["ablation", CORRECT], same_rows, "Ablation", "Attribution patching", figure_dir=figures
        )
    shown = [{"latent model": name, "Pearson r": r} for name, r in correlations.items()]
    _table(console, "Ablation against attribution patching, total effects on the same rows", shown)
    return {
        "model": session.module.it_cfg.model_name_or_path,
        "stack": list(session.context.names),
        "rows": sum(map(len, clean.orig_labels)),
        "analyses": {str(mode): str(cache.store.folder) for mode, cache in caches.items() if cache.store is not None},
        "ablated_rows": sum(map(len, caches[AnalysisMode.ablation].orig_labels)),
        "correct": correct,
        "answers": [{"mode": str(mode), **row} for mode, counts in given.items() for row in counts.as_rows()],
        "largest_effects": [row for item in metrics.values() for row in _largest(item, options.top_k)],
        "quality": [{name: finite_or_none(value) for name, value in asdict(item).items()} for item in quality],
        "ablation_attribution_pearson": {name: finite_or_none(r) for name, r in correlations.items()},
    }


def asked_answer(options: DemoOptions) -> str | int:
    """The answer whose effects are reported beside those towards the correct one."""
    asked = 0 if options.towards is None else options.towards
    return int(asked) if isinstance(asked, str) and asked in ("0", "1") and asked not in options.answers else asked


def _effects(
    cache: AnalysisCache, run_name: str, contexts: ActivationSummary, towards: str | int = CORRECT
) -> LatentMetrics:
    """Effects over all rows of an analysis, with the contexts of a larger one for the dashboards."""
    found = calculate_latent_metrics(cache, filter_by_correct=False, run_name=run_name, towards=towards)
    return evolve(found, summary=contexts)


def _largest(metrics: LatentMetrics, top_k: int) -> Iterator[dict[str, Any]]:
    """For the summary: the latents with the largest total effects of either sign at each latent model."""
    for name, table in metrics.tables.items():
        for i in table.total_effect.abs().argsort(descending=True, stable=True)[:top_k].tolist():
            yield {
                "analysis": metrics.run_name,
                "towards": metrics.direction.name,
                "latent_model": name,
                "latent": int(table.latents[i]),
                "total_effect": finite_or_none(table.total_effect[i].item()),
                "mean_effect": finite_or_none(table.mean_effect[i].item()),
                "active_in": int(table.num_samples_active[i]),
            }


def _table(console: Console, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    console.rule(title)
    console.print(table_text(rows), highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def _through(console: Console) -> Iterator[None]:
    """Send what reports print to the console, which may be standard error."""
    captured = io.StringIO()
    with contextlib.redirect_stdout(captured):
        yield
    console.print(captured.getvalue(), highlight=False, markup=False, soft_wrap=True)
