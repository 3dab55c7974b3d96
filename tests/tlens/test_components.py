"""Components of TransformerLens's models have the effects of the plain model's; edges into heads are refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import interpretune as it
from interpretune.testing.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.tlens.test_above_blocks import backend_on

ROWS = [
    it.PromptRow("Ada sees the red dog near the", (" house", " tree"), 0, "Ada sees the old dog near the"),
    it.PromptRow("Bo likes a boat and", (" Max", " Nora"), 1, "Bo likes a lamp and"),
]
EDGES = [
    ("layers.0.attn_z head 1", "layers.1.mlp_in"),
    ("layers.1.attn_z head 2", "layers.1.mlp_in"),
    ("layers.1.attn_z head 2", "logits"),
    ("layers.0.resid_pre", "layers.1.mlp_in"),
]


@pytest.mark.parametrize(("stack", "make"), [("hooked", tiny_gpt2), ("bridge", tiny_llama)])
def test_components_are_those_of_the_plain_model(llama_folder: Path, stack: str, make: Any) -> None:
    model, tokenizer = make().eval(), tiny_tokenizer()
    ours = backend_on(stack, copy.deepcopy(model), llama_folder)
    nodes, expected = (it.node_patching(item, tokenizer, ROWS).to_pandas() for item in (ours, model))
    assert nodes.effect.abs().max() > 0.1
    np.testing.assert_allclose(nodes.effect, expected.effect, rtol=0, atol=1e-4)
    paths, expected = (it.path_patching(item, tokenizer, ROWS, edges=EDGES).to_pandas() for item in (ours, model))
    assert paths.exact.abs().max() > 0.1
    np.testing.assert_allclose(paths.exact, expected.exact, rtol=0, atol=1e-4)
    with pytest.raises(it.HookPointError, match=r"does not reach 'layers.0.attn_q'"):
        it.component_edges(ours, tokenizer, ROWS)
