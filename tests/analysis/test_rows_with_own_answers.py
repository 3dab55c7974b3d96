"""Analyses of sessions over rows with answers of their own give the numbers of ``effects``, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import interpretune as it
from interpretune.analysis import AnalysisCache, AnalysisCfg, AnalysisRunner
from interpretune.testing.tiny_models import tiny_llama
from tests.question_sessions import ROWS, session_of
from tests.tiny_latents import RandomDictionary, activations_of

FOUR = [*ROWS, it.PromptRow("Ada sees the red dog", (" house", " tree", " park", " office"), 3)]
TWO = [it.PromptRow(row.prompt, row.answers[:2], row.correct % 2) for row in FOUR]
STEPS = 2
HOW: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ablation": ({"mode": "ablation"}, {}),
    "gradient": ({"mode": "attr_patching"}, {"method": "gradient"}),
    "path": ({"mode": "attr_patching", "steps": STEPS}, {"method": "integrated_gradients", "steps": STEPS}),
}
MEAN = {"logit_diff": {"against": "mean"}}


def session_in_float64(folder: Path, rows: Any, side: str = "left", batch_size: int = 1) -> it.ITSession:
    models = [
        RandomDictionary("layers.0.resid_post", seed=1, skips=True).double(),
        RandomDictionary("layers.1.mlp_out", seed=2).double(),
    ]
    model = tiny_llama().double().eval()
    return session_of(folder, rows, side=side, latent_models=models, hf_model=model, eval_batch_size=batch_size)


def asked_of(session: it.ITSession, rows: list[it.PromptRow], objective: Any, **asked: Any) -> it.Effects:
    module, tokenizer = session.module, session.datamodule.tokenizer
    units = list(module.latent_models)
    return it.effects(module.model, tokenizer, rows, units=units, objective=objective, **asked)


@pytest.mark.parametrize(
    ("rows", "side", "batch_size", "asked"),
    [
        (TWO, "left", 3, [("logit_diff", "ablation"), ("logit_diff", "gradient")]),
        (FOUR, "right", 2, [(MEAN, "ablation"), (MEAN, "path"), ("kl", "ablation")]),
        (FOUR, "left", 1, [("log_prob", "ablation"), ("log_prob", "gradient")]),
    ],
    ids=["two", "four", "alone"],
)
def test_modes_give_the_numbers_of_effects(tmp_path: Path, rows: Any, side: str, batch_size: int, asked: Any) -> None:
    session = session_in_float64(tmp_path, rows, side, batch_size)
    cfgs = {str(i): AnalysisCfg(objective=objective, **HOW[how][0]) for i, (objective, how) in enumerate(asked)}
    stores = AnalysisRunner(**session, root=tmp_path / "stores").run(cfgs)
    for (objective, how), store in zip(asked, stores.values(), strict=True):
        found = asked_of(session, rows, objective, batch_size=5, **HOW[how][1])
        table, cache = found.to_pandas().set_index(["units", "row", "unit"]).effect, AnalysisCache.of(store)
        measured = cache.logit_diffs if objective == "logit_diff" else cache.objective
        assert torch.cat(list(measured)).tolist() == pytest.approx(found.rows().objective_spliced.tolist(), abs=1e-10)
        for item in session.module.latent_models:
            effects = torch.cat([batch[activations_of(item)].dense() for batch in cache.effects])
            expected = torch.zeros_like(effects)
            for (row, unit), effect in table[item.name].items():
                expected[row, unit] = effect
            torch.testing.assert_close(effects, expected, rtol=0, atol=1e-10)
            assert expected.abs().max() > 1e-4
