"""Comparisons of stores that measure by objectives, and of questions beside analyses of a session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import interpretune as it
from interpretune.analysis import AnalysisCfg, AnalysisRunner, compare_stores
from interpretune.questions import KL, LogProb
from interpretune.testing.tiny_models import tiny_llama, tiny_tokenizer
from tests.sessions import make_session
from tests.tiny_latents import RandomDictionary

ROWS = [it.PromptRow("Ada sees the red dog", (" house", " tree"), 0), it.PromptRow("Bo likes a", (" boat", " tree"), 1)]


def test_effects_are_compared_where_objective_and_rows_are_the_same() -> None:
    model, tokenizer = tiny_llama().double().eval(), tiny_tokenizer()
    exact, rough = (
        it.effects(model, tokenizer, ROWS, units=it.Heads(1), objective=LogProb(), method=method)
        for method in ("exact", "gradient")
    )
    found = compare_stores(exact, rough)
    assert (found.examples, found.pairs, found.hooks_apart) == (2, 8, ())
    totals = exact.to_pandas().groupby("unit").effect.sum()
    assert dict(zip(*(found.latents[name].to_pylist() for name in ("latent", "left")), strict=True)) == pytest.approx(
        totals.to_dict()
    )
    other = it.effects(model, tokenizer, ROWS, units=it.Heads(1), objective=KL())
    with pytest.raises(it.StoreError, match="left is measured by log_prob, right by kl"):
        compare_stores(exact, other)
    assert compare_stores(exact, other, "activations").get("pearson").value == pytest.approx(1)
    elsewhere = it.effects(model, tokenizer, ROWS, units=it.Heads(1), objective=LogProb(), positions="each")
    with pytest.raises(it.StoreError, match="different data"):
        compare_stores(exact, elsewhere)


def test_effects_agree_with_an_analysis_of_the_same_rows(tmp_path: Path) -> None:
    coder = RandomDictionary("blocks.1.hook_resid_post", d_sae=10)
    session = make_session(tmp_path, "llama", n_rows=4, latent_models=[coder])
    stores = AnalysisRunner(**session, root=tmp_path / "out").run(
        {"ablation": AnalysisCfg(mode="ablation", objective="prob")}
    )
    tokenizer = session.datamodule.tokenizer
    data = session.datamodule.dataset["validation"]
    rows = [it.PromptRow(tokenizer.decode(row["input_ids"][1:]), (" Yes", " No"), row["labels"]) for row in data]
    found = it.effects(session.module.backend, tokenizer, rows, units=coder, objective="prob")
    with pytest.raises(it.StoreError, match="different data"):
        compare_stores(stores["ablation"], found)
    both = compare_stores(stores["ablation"], found, other_data=True)
    assert both.pairs > 0
    torch.testing.assert_close(
        torch.tensor(both.latents["left"].to_numpy()), torch.tensor(both.latents["right"].to_numpy()), rtol=0, atol=1e-5
    )
