"""``mlp_act`` is what the last projection of an MLP reads, and is refused where a forward shows that it is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import interpretune as it
from interpretune.activations.hook_names import canonical_names, in_layer
from interpretune.analysis import HuggingFaceBackend
from interpretune.backends import hugging_face_hook_points
from tests.tiny_architectures import BLOCKS, VOCABULARY, WIDTH, batch_of, make_model

INPUTS = batch_of((7, 7), "left")
LAST = {
    "llama": "model.layers.1.mlp.down_proj",
    "qwen3": "model.layers.1.mlp.down_proj",
    "gemma2": "model.layers.1.mlp.down_proj",
    "gemma3": "model.layers.1.mlp.down_proj",
    "olmo2": "model.layers.1.mlp.down_proj",
    "granite": "model.layers.1.mlp.down_proj",
    "cohere": "model.layers.1.mlp.down_proj",
    "phi3": "model.layers.1.mlp.down_proj",
    "phi": "model.layers.1.mlp.fc2",
    "gpt2": "transformer.h.1.mlp.c_proj",
    "gpt_neo": "transformer.h.1.mlp.c_proj",
    "neox": "gpt_neox.layers.1.mlp.dense_4h_to_h",
    "bloom": "transformer.h.1.mlp.dense_4h_to_h",
}
OTHERS = {
    "phi3": lambda: hf.Phi3Config(
        hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=BLOCKS, num_attention_heads=4, vocab_size=VOCABULARY,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
    "gpt_neo": lambda: hf.GPTNeoConfig(
        hidden_size=WIDTH, num_layers=BLOCKS, num_heads=4, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2,
        attention_types=[[["global", "local"], BLOCKS // 2]], max_position_embeddings=64,
    ),
    "mixtral": lambda: hf.MixtralConfig(
        hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=BLOCKS, num_attention_heads=4, vocab_size=VOCABULARY,
        num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1,
    ),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(
        hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=BLOCKS, num_attention_heads=4, vocab_size=VOCABULARY,
        num_key_value_heads=2, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=24, head_dim=8,
        mlp_only_layers=[1], bos_token_id=1, eos_token_id=2,
    ),
}  # fmt: skip
"""Besides those of ``tiny_architectures``; the weights are as small as transformers draws them."""
WITH_NONE = ("opt", "gpt_oss", "mixtral")


def model_of(kind: str) -> Any:
    if kind not in OTHERS:
        return make_model(kind, torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return hf.AutoModelForCausalLM.from_config(OTHERS[kind]()).eval()


@torch.no_grad()
def run_with(model: Any, last: nn.Module, hook: Any) -> Tensor:
    """Logits with a plain hook before the last projection."""
    with last.register_forward_pre_hook(lambda _, args: hook(args[0])):
        logits: Tensor = model(input_ids=INPUTS.tokens, attention_mask=INPUTS.attention_mask, use_cache=False).logits
    return logits


def ablate_neuron(activations: Tensor) -> Tensor:
    edited = activations.clone()
    edited[..., 5] = 0
    return edited


@pytest.mark.parametrize("kind", LAST)
def test_it_is_what_the_last_projection_reads(kind: str) -> None:
    model = model_of(kind)
    backend, last, name = HuggingFaceBackend(model), model.get_submodule(LAST[kind]), in_layer(1, "mlp_act")
    seen: list[Tensor] = []
    clean = run_with(model, last, lambda x: seen.append(x.clone()))
    with torch.no_grad():
        found, cache = backend.forward(INPUTS, {}), backend.run_with_cache(INPUTS, [name])[1]
        edited = backend.forward(INPUTS, {"blocks.1.mlp.hook_post": ablate_neuron})
    torch.testing.assert_close(found, clean)
    torch.testing.assert_close(cache[name], seen[0])
    assert cache[name].shape[-1] > WIDTH
    torch.testing.assert_close(edited, run_with(model, last, ablate_neuron))
    assert (edited - clean).abs().max() > 1e3 * torch.finfo(torch.float32).eps * clean.abs().max()
    backend.check_hook_points([in_layer(i, "mlp_act") for i in range(BLOCKS)])


def test_a_gated_mlp_has_it_after_the_gate() -> None:
    model = model_of("llama")
    names = [in_layer(2, part) for part in ("mlp_in", "mlp_act", "mlp_out")]
    with torch.no_grad():
        read, act, out = HuggingFaceBackend(model).run_with_cache(INPUTS, names)[1].values()
        mlp = model.model.layers[2].mlp
        torch.testing.assert_close(act, nn.functional.silu(mlp.gate_proj(read)) * mlp.up_proj(read))
        torch.testing.assert_close(out, mlp.down_proj(act))


@pytest.mark.parametrize("kind", [*LAST, "qwen3_moe"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_first_projection_of_its_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype
) -> None:
    first = ("up_proj", "gate_up_proj", "c_fc", "dense_h_to_4h", "fc1")
    monkeypatch.setattr(hugging_face_hook_points, "LAST_OF_MLP_NAMES", first)
    backend = HuggingFaceBackend(model_of(kind).to(dtype))
    assert "layers.1.mlp_act" in backend.hook_point_names()
    with pytest.raises(it.HookPointError, match=r"'layers.1.mlp_act'.*not what the last projection of the MLP reads"):
        backend.check_hook_points(["layers.1.mlp_act"])


class GoesOn(nn.Module):
    """An MLP with something else behind what is called its last projection."""

    def __init__(self, mlp: nn.Module, after: Any) -> None:
        super().__init__()
        self.down_proj, self.mlp, self.after = nn.Linear(48, WIDTH), mlp, after

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, pos, d_model]`` to the same."""
        return self.after(self.down_proj(torch.cat([x, x[..., :16]], -1).relu()), x)


@pytest.mark.parametrize(
    "after", [lambda y, _: y.relu(), lambda y, x: y + 3 * x, lambda _, x: x], ids=["relu", "x", "unread"]
)
def test_what_more_than_an_affine_map_follows_is_refused(after: Any) -> None:
    model = model_of("llama")
    model.model.layers[1].mlp = GoesOn(model.model.layers[1].mlp, after)
    backend = HuggingFaceBackend(model)
    backend.check_hook_points(["layers.0.mlp_act", "layers.2.mlp_act", "layers.1.mlp_out"])
    with pytest.raises(it.HookPointError, match=r"no hook point 'layers.1.mlp_act'"):
        backend.check_hook_points(["layers.1.mlp_act"])


def test_blocks_that_share_an_mlp_have_none() -> None:
    model = model_of("llama")
    model.model.layers[2].mlp = model.model.layers[1].mlp
    backend = HuggingFaceBackend(model)
    backend.check_hook_points(["layers.0.mlp_act", "layers.3.mlp_act"])
    for name in ("layers.1.mlp_act", "layers.2.mlp_act"):
        with pytest.raises(it.HookPointError, match=f"no hook point '{name}'"):
            backend.check_hook_points([name])


@pytest.mark.parametrize("kind", WITH_NONE)
def test_experts_and_blocks_without_an_mlp_have_none(kind: str) -> None:
    backend = HuggingFaceBackend(model_of(kind))
    assert not [name for name in backend.hook_point_names() if name.endswith("mlp_act")]
    with pytest.raises(it.HookPointError, match="no hook point 'blocks.1.mlp.hook_post'"):
        backend.check_hook_points(["blocks.1.mlp.hook_post"])


def test_dense_layers_between_experts_have_it() -> None:
    backend = HuggingFaceBackend(model_of("qwen3_moe"))
    assert [
        name for name, _ in canonical_names(BLOCKS) if name.endswith("mlp_act") and name in backend.hook_point_names()
    ] == ["layers.1.mlp_act"]
    backend.check_hook_points(["layers.1.mlp_act"])
