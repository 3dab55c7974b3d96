"""Last norm and unembedding of TransformerLens's models, whose weights may be folded, beside the models' own logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from interpretune.activations.hook_names import in_layer
from interpretune_tlens import ITLensFromPretrainedConfig, ITLensFromPretrainedNoProcessingConfig, loading
from interpretune_tlens.backend import TransformerLensBackend
from tests.tiny_architectures import BLOCKS, batch_of, make_model

STACKS = {
    "bridge": (loading._bridge, ITLensFromPretrainedNoProcessingConfig()),
    "folded bridge": (loading._bridge, ITLensFromPretrainedConfig()),
    "hooked": (loading._hooked, ITLensFromPretrainedNoProcessingConfig(use_bridge=False)),
    "folded hooked": (loading._hooked, ITLensFromPretrainedConfig(use_bridge=False)),
}


def backend_on(stack: str, kind: str, folder: Path) -> TransformerLensBackend:
    model: Any = make_model(kind, torch.float32)
    model.config.architectures = [type(model).__name__]
    build, cfg = STACKS[stack]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return TransformerLensBackend(build(model, tokenizer, cfg, torch.device("cpu")).eval())


@pytest.mark.parametrize(
    ("stack", "kind"), [*((stack, kind) for stack in STACKS for kind in ("llama", "gpt2")), ("bridge", "gemma2")]
)
@torch.no_grad()
def test_the_last_stream_gives_the_models_logits(llama_folder: Path, stack: str, kind: str) -> None:
    backend, inputs = backend_on(stack, kind, llama_folder), batch_of((9, 2, 6), "left")
    own, seen = backend.run_with_cache(inputs, [in_layer(BLOCKS - 1, "resid_post"), "final_norm"])
    stream, normed = (inputs.answers.of(values) for values in seen.values())
    torch.testing.assert_close(backend.final_norm(stream), normed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backend.unembed(normed), own, rtol=1e-5, atol=1e-5)
