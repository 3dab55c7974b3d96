"""Attention patterns of TransformerLens's models are those of the plain model, and so is what follows from an edit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny_architectures import backend_of, batch_of, make_model
from tests.tlens.test_above_blocks import backend_on

NAME = "layers.1.attn_pattern"


@pytest.mark.parametrize(
    ("stack", "kind"), [("bridge", "llama"), ("bridge", "gpt2"), ("hooked", "llama"), ("folded hooked", "gpt2")]
)
@torch.no_grad()
def test_they_are_those_of_the_plain_model(llama_folder: Path, stack: str, kind: str) -> None:
    model = make_model(kind, torch.float32)
    ours, plain = backend_on(stack, model, llama_folder), backend_of(make_model(kind, torch.float32))
    inputs = batch_of((9, 2, 6), "left")
    real = inputs.attention_mask.bool()

    def look_elsewhere(pattern: Tensor) -> Tensor:
        edited = pattern.clone()
        edited[:, -1, 2] = pattern[:, -1, 1]  # shares add up to 1, as folded biases of values need it
        return edited

    for backend in (ours, plain):
        assert NAME in backend.pattern_names()
    found, expected = (backend.run_with_cache(inputs, [NAME])[1][NAME][real] for backend in (ours, plain))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    after, expected = (
        backend.forward(inputs, {NAME: look_elsewhere}, inputs.answers).log_softmax(-1) for backend in (ours, plain)
    )
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
    assert (after - plain.run(inputs).log_softmax(-1)).abs().max() > 1e-3
