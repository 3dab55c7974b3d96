"""What notebooks show of results: short tables, in which nothing that comes from data is markup."""

from __future__ import annotations

import re

import torch

from interpretune.analysis import (
    AnalysisCfg,
    AnalysisMode,
    AnswerCounts,
    calculate_latent_metrics,
    compare_stores,
    plan_of,
)
from interpretune.questions.result import Effects
from interpretune.store import StoreWriter
from interpretune.store.fields import Field
from tests.question_sessions import ROWS, session_of
from tests.reports.effect_stores import write_effects
from tests.tiny_results import RandomResults

ATTACK = "<img src=x onerror=alert(1)>"
ALLOWED = {"p", "table", "thead", "tbody", "tr", "th", "td", "div", "style", "pre"}


def shown(thing):
    text = thing._repr_html_()
    tags = set(re.findall(r"<\s*/?\s*([A-Za-z]+)", text))
    assert tags <= ALLOWED, tags
    assert len(text) < 40_000
    return text


def test_results_that_attack_are_text(tmp_path):
    hostile = Effects.open(write_effects(tmp_path / "effects", question={"objective": ATTACK}))
    assert "&lt;img" in shown(hostile)
    fields = [Field(f"field_{i}", "float64", about=ATTACK * 20) for i in range(60)]
    store, writer = StoreWriter.in_memory(fields, {})
    with writer:
        writer.write(0, range(2), {item.name: torch.zeros(2, dtype=torch.float64) for item in fields})
        writer.seal()
    assert "30 more rows" in shown(store)
    assert "&lt;img" in shown(store)
    other = write_effects(tmp_path / "other", method="gradient", question={"objective": ATTACK})
    assert "pearson" in shown(compare_stores(hostile, Effects.open(other), names=(ATTACK, ATTACK)))
    assert "&lt;img" in shown(AnswerCounts((ATTACK, " No"), torch.eye(2, dtype=torch.long)))


def test_latents_of_an_analysis_are_a_frame_and_a_short_table():
    results = RandomResults(0)
    metrics = calculate_latent_metrics(results.cache, run_name="ablation")
    frame = metrics.to_pandas()
    totals = {name: effects.sum(axis=0) for name, effects in results.effects.items()}
    assert len(frame) == sum(len(table.latents) for table in metrics.tables.values())
    assert all(abs(totals[row.hook][row.latent] - row.total_effect) < 1e-9 for row in frame.itertuples())
    assert frame.total_effect.abs().is_monotonic_decreasing
    assert f"{len(frame) - 10} more rows" in shown(metrics)


def test_sessions_contexts_and_plans_are_tables(tmp_path):
    session = session_of(tmp_path, ROWS)
    assert "ClassificationModule" in shown(session)
    assert "interpretune-core" in shown(session.context)
    assert "logit_diffs" in shown(plan_of(AnalysisCfg(mode=AnalysisMode.clean_no_sae), []))
