"""Lenses as operations of a session, beside the same by one call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import interpretune as it
from interpretune.analysis import AnalysisRunner, offered_operations
from interpretune.operations import Plan, find_operation
from interpretune.questions import KL
from tests.sessions import ANSWERS, make_session, plain_model
from tests.tiny import VOCABULARY, tiny_tokenizer
from tests.tiny_architectures import LinearDictionary

NAMES = ("read_layers", "run_direct", "effects_written", "effects_of_latents")


FIELDS = ("layer_objective", "scale_held", "layer_ranks", "layer_answers", "before_cap", "direct_bias")


def test_a_plan_of_lenses_gives_what_the_calls_give(tmp_path: Path) -> None:
    coder = LinearDictionary("blocks.1.hook_mlp_out", d_sae=20, seed=1)
    session = make_session(tmp_path, "gpt2", n_rows=4, latent_models=[coder])
    offered = offered_operations(session.module)
    plan = Plan.of([find_operation(name, offered) for name in NAMES])
    divergence = Plan.of([find_operation("read_layers", offered).with_options(objective=KL())])
    stores = AnalysisRunner(**session, root=tmp_path / "results").run({"lenses": plan, "kl": divergence})
    store = stores["lenses"]
    rows = [
        it.PromptRow(" ".join(words_of(row["input_ids"])), ANSWERS, row["labels"])
        for row in session.datamodule.dataset["validation"]
    ]
    model, tokenizer = plain_model("gpt2"), tiny_tokenizer()
    lens = it.logit_lens(model, tokenizer, rows).to_pandas()
    direct = it.direct_logit_attribution(model, tokenizer, rows)
    latents = it.direct_logit_attribution(model, tokenizer, rows, units=coder).to_pandas()
    found = {
        name: torch.cat([batch[name] for batch in store.batches()])
        for name in ("scale_held", "layer_objective", "layer_ranks", "layer_answers", "before_cap", "direct_bias")
    }
    assert found["layer_objective"].flatten().numpy() == pytest.approx(lens.objective.to_numpy(), abs=1e-4)
    assert found["scale_held"].flatten().numpy() == pytest.approx(lens.scale_held.to_numpy(), abs=1e-4)
    assert found["layer_ranks"].flatten().tolist() == lens["rank"].tolist()
    assert found["layer_answers"].flatten().numpy() == pytest.approx(np.concatenate(lens.logits.to_list()), abs=1e-4)
    assert found["before_cap"].numpy() == pytest.approx(direct.rows().before_cap.to_numpy(), abs=1e-4)
    assert found["direct_bias"].numpy() == pytest.approx(direct.rows().bias.to_numpy(), abs=1e-4)
    written = direct.to_pandas().set_index(["row", "units"]).effect
    own = latents.set_index(["row", "unit"])
    count = 0
    for batch in store.batches():
        for n, example in enumerate(batch.examples.tolist()):
            for name, values in batch["written_effects"].items():
                assert values.values[n, 0].item() == pytest.approx(written[example, name], abs=1e-4)
            [values] = batch["direct_effects"].values()
            [alone] = batch["direct_alone"].values()
            for k, latent in enumerate(values.latents.tolist()):
                expected = own.effect.get((example, latent), 0.0)
                assert values.values[n, k].item() == pytest.approx(expected, abs=1e-4)
                assert alone.values[n, k].item() == pytest.approx(own.alone.get((example, latent), 0.0), abs=1e-3)
                count += expected != 0
    assert count > 10
    away = torch.cat([batch["layer_objective"] for batch in stores["kl"].batches()])
    assert away[:, -1].abs().max() < 1e-5
    assert away[:, 0].min() > 1e-3
    it.it_session_end(**session)


def words_of(ids: list[int]) -> list[str]:
    words = {index: word for word, index in VOCABULARY.items()}
    return [words[i] for i in ids[1:]]
