"""Deep models in 16 bits: hook points are proved and edited, and what bears a wrong name is still refused."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import interpretune as it
from interpretune.activations.hook_names import in_layer
from interpretune.analysis import HuggingFaceBackend, ModelInputs
from tests.tiny_architectures import make_model
from tests.tiny_latents import hooked

LAYERS = 24
"""As many as real models have: what grows from block to block overflows in them."""
PARTS = ("attn_out", "resid_mid", "mlp_out")
HALVES = [torch.float16, torch.bfloat16]


@cache
def deep_model(kind: str, dtype: torch.dtype, layers: int = LAYERS) -> Any:
    config = {
        "gpt2": lambda: hf.GPT2Config(
            n_embd=32, n_layer=layers, n_head=4, vocab_size=101, bos_token_id=1, eos_token_id=2
        ),
        "llama": lambda: hf.LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4, vocab_size=101
        ),
        "granite": lambda: hf.GraniteConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4, vocab_size=101,
            residual_multiplier=0.22, embedding_multiplier=12.0, pad_token_id=0,
        ),
    }[kind]()  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return hf.AutoModelForCausalLM.from_config(config).eval().to(dtype)


def inputs() -> ModelInputs:
    tokens = torch.tensor([[5, 6, 7], [8, 9, 4]])
    return ModelInputs(tokens, torch.ones_like(tokens))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "granite"])
def test_every_place_of_a_deep_model_is_proved(kind: str, dtype: torch.dtype) -> None:
    backend = HuggingFaceBackend(deep_model(kind, dtype))
    backend.check_hook_points([in_layer(layer, part) for layer in range(LAYERS) for part in PARTS])


def test_forty_eight_blocks_in_float16_are_proved() -> None:
    backend = HuggingFaceBackend(deep_model("llama", torch.float16, 48))
    backend.check_hook_points([in_layer(layer, part) for layer in range(48) for part in PARTS])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_edits_in_half_precision_equal_hooks_by_hand(kind: str, dtype: torch.dtype) -> None:
    model = deep_model(kind, dtype)
    place = f"blocks.{LAYERS // 2}.hook_mlp_out"

    def change(x: Tensor) -> Tensor:
        return x + torch.linspace(-3, 3, 32).to(x)

    with torch.no_grad(), hooked(model, [(place, change)]):
        wanted = model(input_ids=inputs().tokens).logits
    with torch.no_grad():
        backend = HuggingFaceBackend(model)
        assert torch.equal(backend.forward(inputs(), {place: change}), wanted)
        assert (backend.forward(inputs(), {}) - wanted).abs().max() > 0.1


@pytest.mark.parametrize("dtype", HALVES)
def test_sums_with_the_residual_stream_are_refused_in_half(dtype: torch.dtype) -> None:
    backend = HuggingFaceBackend(make_model("bloom", dtype))
    for part in PARTS:
        with pytest.raises(it.HookPointError, match=f"no hook point 'layers.1.{part}'.*not what is added"):
            backend.check_hook_points([f"layers.1.{part}"])


@pytest.mark.parametrize("dtype", HALVES)
def test_a_shared_sublayer_of_a_deep_model_is_refused(dtype: torch.dtype) -> None:
    model = copy.deepcopy(deep_model("llama", dtype))
    model.model.layers[20].mlp = model.model.layers[12].mlp
    backend = HuggingFaceBackend(model)
    backend.check_hook_points(["layers.20.attn_out", "layers.19.mlp_out"])
    for name in ("layers.12.mlp_out", "layers.20.mlp_out"):
        with pytest.raises(it.HookPointError, match=f"no hook point '{name}'"):
            backend.check_hook_points([name])


def test_a_model_that_overflows_by_itself_is_an_error_in_words() -> None:
    model = make_model("llama", torch.float16)
    model.model.embed_tokens.weight.data.fill_(6e4)
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda _, __, output: torch.full_like(output, 6e4))
    model.model.layers[1].register_forward_hook(lambda _, __, output: output * torch.inf)
    with pytest.raises(it.AnalysisError, match=r"block 1 is not finite.*float16; load it in one whose range"):
        HuggingFaceBackend(model).check_hook_points(["layers.1.mlp_out"])
