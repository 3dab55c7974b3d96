"""Attribution graphs of TransformerLens's models are those of the plain model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import interpretune as it
from interpretune.testing.tiny_models import tiny_tokenizer
from tests.circuits.plain_graph import transcoders
from tests.questions.test_effects import MODELS
from tests.tlens.test_above_blocks import backend_on


@pytest.mark.parametrize(("stack", "kind"), [("bridge", "gemma3"), ("hooked", "gpt2"), ("folded hooked", "llama")])
def test_they_are_those_of_the_plain_model(llama_folder: Path, stack: str, kind: str) -> None:
    model, coders = MODELS[kind]().eval(), transcoders([0, 2], torch.float32, reads="resid_mid")
    ours, plain = (
        it.attribution_graph(
            one, tiny_tokenizer(), "Ada sees the dog", transcoders=coders, answers=[" house", " tree"]
        ).exact_effects()
        for one in (backend_on(stack, copy.deepcopy(model), llama_folder), model)
    )
    assert ours.nodes.name.tolist() == plain.nodes.name.tolist()
    for found, expected in ((ours.adjacency, plain.adjacency), (ours.exact, plain.exact)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("stack", ["bridge", "hooked"])
def test_what_a_norm_has_divided_is_read_with_its_scale_held(llama_folder: Path, stack: str) -> None:
    """There, before the gain, transcoders of Gemma Scope read."""
    model, [after] = MODELS["llama"]().eval(), transcoders([1], torch.float32, reads="")
    after.hook_points = (after.hook_point,) = ("blocks.1.ln2.hook_normalized",)
    gain = model.model.layers[1].post_attention_layernorm.weight.detach()
    [before] = transcoders([1], torch.float32, reads="")
    before.hook_points = (before.hook_point,) = ("layers.1.mlp_in",)
    before.w_enc = before.w_enc / gain.unsqueeze(-1)
    backend = backend_on(stack, model, llama_folder)
    ours, plain = (
        it.attribution_graph(backend, tiny_tokenizer(), "Ada sees the dog", transcoders=[one]).exact_effects()
        for one in (after, before)
    )
    torch.testing.assert_close(ours.adjacency, plain.adjacency, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.exact, plain.exact, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert (ours.nodes.kind == "latent").sum() > 5
