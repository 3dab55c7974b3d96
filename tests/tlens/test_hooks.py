"""Hooks on bridges: an edit is made once, whatever aliases its place has, and only the user's own hooks stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

import interpretune as it
from interpretune.analysis import HuggingFaceBackend
from interpretune_tlens import ITLensFromPretrainedNoProcessingConfig, loading
from interpretune_tlens.backend import TransformerLensBackend
from tests.activations.test_mlp_act import ablate_neuron, model_of
from tests.tiny_architectures import BLOCKS, batch_of, make_model
from tests.tiny_latents import hooked

NAME, ALIAS = "blocks.1.hook_out", "blocks.1.hook_resid_post"
INPUTS = batch_of((9, 9), "left")


@pytest.fixture
def bridge(llama_folder: Path) -> Any:
    """In compatibility mode, in which TransformerLens can call a hook once for each alias of its place."""
    model = make_model("llama", torch.float32)
    model.config.architectures = [type(model).__name__]
    cfg = ITLensFromPretrainedNoProcessingConfig(use_bridge=True)
    made = loading.convert(model, AutoTokenizer.from_pretrained(llama_folder), cfg, torch.device("cpu")).eval()
    made.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    assert made.hook_dict[NAME] is made.hook_dict[ALIAS]
    return made


@pytest.mark.parametrize("name", [NAME, ALIAS])
def test_an_additive_edit_is_made_once_and_the_users_hooks_survive(bridge: Any, name: str) -> None:
    plain, backend = make_model("llama", torch.float32), TransformerLensBackend(bridge)
    seen, step = [], torch.linspace(-1, 1, 32)
    bridge.hook_dict[ALIAS].add_hook(lambda activations, hook: seen.append(activations.shape))
    bridge.hook_dict["blocks.2.hook_out"].add_perma_hook(lambda activations, hook: seen.append(hook.name))
    before = hooks_of(bridge)
    calls = []

    def add(activations: Tensor) -> Tensor:
        calls.append(activations.shape)
        return activations + step

    with torch.no_grad():
        found = backend.forward(INPUTS, {name: add, "blocks.2.hook_resid_pre": lambda x: x})
        with hooked(plain, [(ALIAS, lambda x: x + step)]):
            once = plain(input_ids=INPUTS.tokens).logits
        with hooked(plain, [(ALIAS, lambda x: x + 2 * step)]):
            twice = plain(input_ids=INPUTS.tokens).logits
    assert len(calls) == 1
    torch.testing.assert_close(found, once, rtol=0, atol=1e-4)
    assert (twice - once).abs().max() > 0.1
    assert hooks_of(bridge) == before
    assert sum(map(len, before)) == 2
    with pytest.raises(ZeroDivisionError):
        backend.forward(INPUTS, {name: add, "blocks.2.hook_resid_pre": lambda _: 1 / 0})
    assert hooks_of(bridge) == before
    seen.clear()
    with torch.no_grad():
        bridge(INPUTS.tokens)
    assert len(seen) == 2


def hooks_of(bridge: Any) -> list[list[int]]:
    """The hooks on each hook point, as torch has them."""
    points = {id(point): point for point in bridge.hook_dict.values()}  # an alias is the same hook point
    assert all(len(p.fwd_hooks) == len(p._forward_hooks) and not p.bwd_hooks for p in points.values())
    return [[*point._forward_hooks, *point._forward_pre_hooks, *point._backward_hooks] for point in points.values()]


@pytest.mark.parametrize(
    ("stack", "kind"),
    [("bridge", kind) for kind in ("llama", "gpt2", "gemma3", "qwen3", "phi3", "neox", "bloom")]
    + [("hooked", kind) for kind in ("llama", "gpt2", "qwen3", "phi3", "neox")],
)
def test_neurons_are_those_of_the_plain_model(llama_folder: Path, stack: str, kind: str) -> None:
    backends = [HuggingFaceBackend(model_of(kind)), wrapped(kind, llama_folder, bridge=stack == "bridge")]
    names = [f"layers.{i}.mlp_act" for i in range(BLOCKS)]
    found = []
    for backend in backends:
        backend.check_hook_points([*names, "blocks.1.mlp.hook_post"])
        with torch.no_grad():
            cache = backend.run_with_cache(INPUTS, names)[1]
            clean, edited = (backend.forward(INPUTS, edits) for edits in ({}, {names[1]: ablate_neuron}))
        found.append([*cache.values(), (edited - clean) / (edited - clean).abs().max()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=2e-3 * one.abs().max().item())


def test_a_mixture_of_experts_has_no_neurons(llama_folder: Path) -> None:
    backend = wrapped("mixtral", llama_folder, bridge=True)
    assert "blocks.1.mlp.hook_post" in backend.hook_point_names()  # TransformerLens's name for what experts return
    with pytest.raises(it.HookPointError, match="no hook point 'layers.1.mlp_act'"):
        backend.check_hook_points(["layers.1.mlp_act"])


def wrapped(kind: str, tokenizer: Path, *, bridge: bool) -> TransformerLensBackend:
    """The backend of the model as TransformerLens has it."""
    model = model_of(kind)
    model.config.architectures = [type(model).__name__]
    cfg = ITLensFromPretrainedNoProcessingConfig(use_bridge=bridge)
    return TransformerLensBackend(
        loading.convert(model, AutoTokenizer.from_pretrained(tokenizer), cfg, torch.device("cpu")).eval()
    )
