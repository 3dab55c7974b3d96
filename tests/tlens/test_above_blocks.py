"""Ways to the logits in TransformerLens's models, whose weights may be folded, beside the models' own logits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import interpretune as it
from interpretune import Heads, LogitDiff, Neurons, Vector
from interpretune.activations.hook_names import in_layer
from interpretune.testing.tiny_models import tiny_tokenizer
from interpretune_tlens import ITLensFromPretrainedConfig, ITLensFromPretrainedNoProcessingConfig, loading
from interpretune_tlens.backend import TransformerLensBackend
from tests.questions.test_effects import MODELS
from tests.questions.test_lenses import ROWS
from tests.tiny_architectures import BLOCKS, batch_of, make_model

STACKS = {
    "bridge": ITLensFromPretrainedNoProcessingConfig(),
    "folded bridge": ITLensFromPretrainedConfig(),
    "hooked": ITLensFromPretrainedNoProcessingConfig(use_bridge=False),
    "folded hooked": ITLensFromPretrainedConfig(use_bridge=False),
}


def backend_on(stack: str, model: Any, folder: Path) -> TransformerLensBackend:
    model.config.architectures = [type(model).__name__]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return TransformerLensBackend(loading.convert(model, tokenizer, STACKS[stack], torch.device("cpu")).eval())


@pytest.mark.parametrize(
    ("stack", "kind"), [*((stack, kind) for stack in STACKS for kind in ("llama", "gpt2")), ("bridge", "gemma2")]
)
@torch.no_grad()
def test_the_last_stream_gives_the_models_logits(llama_folder: Path, stack: str, kind: str) -> None:
    backend, inputs = backend_on(stack, make_model(kind, torch.float32), llama_folder), batch_of((9, 2, 6), "left")
    own, seen = backend.run_with_cache(inputs, [in_layer(BLOCKS - 1, "resid_post"), "final_norm"])
    stream, normed = (inputs.answers.of(values) for values in seen.values())
    torch.testing.assert_close(backend.final_norm(stream), normed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backend.unembed(normed), own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("stack", "kind"), [*((stack, kind) for stack in STACKS for kind in ("llama", "gpt2")), ("bridge", "gemma3")]
)
def test_contributions_are_those_of_the_plain_model(llama_folder: Path, stack: str, kind: str) -> None:
    """Folded weights give other contributions, which sum to the same."""
    model: Any = MODELS[kind]().eval()
    asked = {"units": [Vector("layers.0.resid_pre"), Heads(), Neurons()], "objective": LogitDiff("mean")}
    ours, plain = (
        it.direct_logit_attribution(one, tiny_tokenizer(), ROWS, **asked)
        for one in (backend_on(stack, copy.deepcopy(model), llama_folder), model)
    )
    rows, sums = ours.rows(), ours.to_pandas().groupby("row").effect.sum()
    assert rows.before_cap.to_numpy() == pytest.approx(plain.rows().before_cap.to_numpy(), abs=1e-4)
    assert (sums + rows.bias + rows.rest).to_numpy() == pytest.approx(rows.before_cap.to_numpy(), abs=1e-4)
    if "folded" in stack:  # value biases go into those of outputs
        assert kind == "gpt2" or rows.rest.abs().max() < 1e-4
        return
    both = ours.to_pandas().merge(plain.to_pandas(), on=["row", "units", "unit"], how="outer").fillna(0)
    assert both.effect_x.to_numpy() == pytest.approx(both.effect_y.to_numpy(), abs=1e-4)
    assert both.alone_x.to_numpy() == pytest.approx(both.alone_y.to_numpy(), abs=1e-3, rel=1e-3)
