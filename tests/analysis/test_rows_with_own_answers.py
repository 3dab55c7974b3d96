"""Analyses of sessions over rows with answers of their own give the numbers of ``effects``, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pandas.testing import assert_frame_equal

import interpretune as it
from interpretune.analysis import AnalysisCache, AnalysisCfg, AnalysisRunner, QuestionCfg
from interpretune.testing.tiny_models import tiny_llama
from tests.question_sessions import ROWS, session_of
from tests.tiny_latents import RandomDictionary, activations_of

FOUR = [*ROWS, it.PromptRow("Ada sees the red dog", (" house", " tree", " park", " office"), 3)]
TWO = [it.PromptRow(row.prompt, row.answers[:2], row.correct % 2) for row in FOUR]
LONG = [
    it.PromptRow("Ada sees the red dog near the", (" old house", " old tree"), 0),
    it.PromptRow("Bo likes a boat and", (" Max", " Nora and Kit", " Kit", " Pia"), 1),
]
STEPS = 2
HOW: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ablation": ({"mode": "ablation"}, {}),
    "gradient": ({"mode": "attr_patching"}, {"method": "gradient"}),
    "path": ({"mode": "attr_patching", "steps": STEPS}, {"method": "integrated_gradients", "steps": STEPS}),
}
OBJECTIVES: dict[str, tuple[Any, list[it.PromptRow], tuple[str, ...]]] = {
    "logit_diff": ("logit_diff", TWO, ("ablation", "gradient")),
    "mean": ({"logit_diff": {"against": "mean"}}, FOUR, ("ablation", "path")),
    "log_prob": ("log_prob", FOUR, ("ablation", "gradient")),
    "kl": ("kl", FOUR, ("ablation", "path")),
}


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
    ("name", "side", "batch_size"),
    [("logit_diff", "left", 3), ("mean", "right", 3), ("log_prob", "left", 1), ("kl", "right", 2)],
)
def test_modes_give_the_numbers_of_effects(tmp_path: Path, name: str, side: str, batch_size: int) -> None:
    objective, rows, ways = OBJECTIVES[name]
    session = session_in_float64(tmp_path, rows, side, batch_size)
    cfgs = {how: AnalysisCfg(objective=objective, **HOW[how][0]) for how in ways}
    stores = AnalysisRunner(**session, root=tmp_path / "stores").run(cfgs)
    for how in ways:
        found = asked_of(session, rows, objective, batch_size=2, **HOW[how][1])
        table, cache = found.to_pandas().set_index(["units", "row", "unit"]).effect, AnalysisCache.of(stores[how])
        measured = cache.logit_diffs if name == "logit_diff" else cache.objective
        assert torch.cat(list(measured)).tolist() == pytest.approx(found.rows().objective_spliced.tolist(), abs=1e-10)
        for item in session.module.latent_models:
            effects = torch.cat([batch[activations_of(item)].dense() for batch in cache.effects])
            expected = torch.zeros_like(effects)
            for (row, unit), effect in table[item.name].items():
                expected[row, unit] = effect
            torch.testing.assert_close(effects, expected, rtol=0, atol=1e-10)
            assert expected.abs().max() > 1e-4


def test_answers_of_several_tokens_are_asked_in_a_run(tmp_path: Path) -> None:
    session = session_in_float64(tmp_path, LONG)
    runner = AnalysisRunner(**session, root=tmp_path / "stores")
    for how in ("ablation", "gradient"):
        settings = {"objective": {"logit_diff": {"against": "max"}}, **HOW[how][1]}
        (store,) = runner.run({how: QuestionCfg(units={"latents": "all"}, **settings)}).values()
        found = asked_of(session, LONG, settings.pop("objective"), **settings)
        assert_frame_equal(it.Effects(store).to_pandas(), found.to_pandas(), rtol=0, atol=1e-10)
    with pytest.raises(it.DataError, match="Row 0 .*several tokens.*analysis with units"):
        runner.run({"modes": AnalysisCfg(mode="ablation")})
