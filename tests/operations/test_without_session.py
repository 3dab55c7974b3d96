"""Operations, plans and steering with a model and a tokenizer in memory, and no session."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

import interpretune as it
from interpretune.analysis import (
    Add,
    AnalysisCfg,
    ModelInputs,
    generate_with_interventions,
    plan_of as plan_of_mode,
    run_with_interventions,
)
from interpretune.analysis.cache import AnalysisCache, SaveCfg
from interpretune.operations import AnswerReader, run_plan
from interpretune.questions import backend_of
from interpretune.testing.tiny_models import VOCABULARY, tiny_llama, tiny_tokenizer
from tests.tiny_latents import RandomDictionary, activations_of

PROMPTS = ["Ada sees the red dog near the", "Bo has"]
ANSWERS = ((" house", " tree"), (" bread", " stone"))
LABELS = torch.tensor([0, 1])


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama().double().eval()


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"mode": "ablation"}, {}),
        ({"mode": "attr_patching", "objective": "log_prob"}, {"objective": "log_prob", "method": "gradient"}),
    ],
    ids=["ablation", "gradient"],
)
def test_plans_of_modes_run_on_a_model_in_memory(model: Any, settings: Any, asked: Any) -> None:
    tokenizer = tiny_tokenizer()
    item = RandomDictionary("layers.1.resid_post", seed=1).double()
    plan = plan_of_mode(
        AnalysisCfg(**settings, analysis_cache=AnalysisCache(SaveCfg(tokens=True, prompts=True))), [item]
    )
    ids = torch.tensor([[VOCABULARY[answer.strip()] for answer in answers] for answers in ANSWERS])
    sources = {
        "inputs": ModelInputs.from_batch(tokenizer(PROMPTS, padding=True, return_tensors="pt")),
        "orig_labels": LABELS,
        "labels": ids.gather(-1, LABELS.unsqueeze(-1)).squeeze(-1),
        "batch_idx": 0,
        "answer_reader": AnswerReader.of(ids),
        "loss_fn": functional.cross_entropy,
        "backend": backend_of(model, tokenizer),
        "latent_models": [item],
        "tokenizer": tokenizer,
    }
    found = run_plan(plan, sources, len(PROMPTS))
    rows = [it.PromptRow(*row) for row in zip(PROMPTS, ANSWERS, LABELS.tolist(), strict=True)]
    table = it.effects(model, tokenizer, rows, units=item, **asked).to_pandas()
    effects = found["effects"][activations_of(item)].dense()
    assert len(table) > 3
    for row, unit, effect in zip(table.row, table.unit, table.effect, strict=True):
        assert effects[row, unit].item() == pytest.approx(effect, abs=1e-10)
    assert found["prompts"] == PROMPTS
    with pytest.raises(it.PlanError, match="reads answer_reader, which is not given"):
        run_plan(plan, {name: value for name, value in sources.items() if name != "answer_reader"}, len(PROMPTS))


def test_a_model_in_memory_is_steered_while_it_generates(model: Any) -> None:
    tokenizer = tiny_tokenizer("right")
    batch, backend = tokenizer(PROMPTS, padding=True, return_tensors="pt"), backend_of(model, tokenizer)
    items = [Add(at="layers.1.resid_post", value=torch.linspace(-3, 3, 32).double(), positions="answer")]
    wanted = run_with_interventions(backend, ModelInputs.from_batch(batch), items).argmax(-1)
    found = generate_with_interventions(
        backend,
        lambda given, **options: model.generate(**given, **options),
        batch,
        items,
        max_new_tokens=1,
        do_sample=False,
    )
    assert found[:, -1].tolist() == wanted.tolist()
    assert wanted.tolist() != backend.run(ModelInputs.from_batch(batch)).argmax(-1).tolist()
