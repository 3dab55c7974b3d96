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
