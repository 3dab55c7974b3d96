"""Attention patterns are what heads mix values by: captured, set, and refused where they cannot be reached."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import interpretune as it
from interpretune.analysis import (
    HuggingFaceBackend,
    ModelInputs,
    Patch,
    Scale,
    SetTo,
    generate_with_interventions,
    run_with_interventions,
)
from interpretune.latents.latent_model import activation_name
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.tiny_architectures import BLOCKS, backend_of, batch_of, dictionary, make_model

LENGTHS = (7, 3, 5)
LAYER, HEAD = 1, 2
NAME = f"layers.{LAYER}.attn_pattern"
NAMES = [f"layers.{layer}.attn_pattern" for layer in range(BLOCKS)]
CLOSE = {"rtol": 0, "atol": 1e-6}
"""Transformers' own patterns are normalised in float32."""


@pytest.mark.parametrize(
    ("kind", "side"), [("llama", "left"), ("gpt2", "right"), ("gemma2", "left"), ("qwen2", "left")]
)
@torch.no_grad()
def test_they_are_those_that_transformers_tells_of(kind: str, side: str) -> None:
    model = make_model(kind)
    inputs = batch_of(LENGTHS, side)
    logits, seen = backend_of(model).run_with_cache(inputs, NAMES)
    torch.testing.assert_close(logits, backend_of(model).run(inputs), **CLOSE)
    model.set_attn_implementation("eager")
    for row, length in enumerate(LENGTHS):
        real = inputs.attention_mask[row].bool()
        plain = model(input_ids=inputs.tokens[row, real].unsqueeze(0), output_attentions=True).attentions
        for name, expected in zip(NAMES, plain, strict=True):
            found = seen[name][row][real][..., real]
            assert found.shape == (length, 4, length)
            torch.testing.assert_close(found.transpose(0, 1), expected[0].double(), **CLOSE)


def values_of(model: Any, tokens: Tensor) -> tuple[Tensor, Any]:
    """What each token has for the head in question, ``[pos, d_head]``, and the projection that reads mixed values."""
    found: list[Tensor] = []
    block = model.transformer.h[LAYER].attn if hasattr(model, "transformer") else model.model.layers[LAYER].self_attn
    source = block.c_attn if hasattr(block, "c_attn") else block.v_proj
    with source.register_forward_hook(lambda _, __, output: found.append(output[0])):
        model(input_ids=tokens)
    heads = (found[0][:, -32:] if hasattr(block, "c_attn") else found[0]).unflatten(-1, (-1, 8))
    own = heads[:, HEAD if heads.shape[1] == 4 else HEAD // 2]
    return own, block.c_proj if hasattr(block, "c_proj") else block.o_proj


@pytest.mark.parametrize(("kind", "side"), [("llama", "left"), ("gpt2", "right")])
@torch.no_grad()
def test_setting_one_changes_what_heads_return(kind: str, side: str) -> None:
    """At the answer one head does not look at the second token, or looks as another prompt does."""
    model = make_model(kind)
    backend, inputs, other = backend_of(model), batch_of(LENGTHS, side), batch_of(LENGTHS, side, seed=1)
    slots = inputs.attention_mask.shape[1]
    first = inputs.attention_mask.argmax(-1)
    source = backend.run_with_cache(other, [NAME])[1][NAME]
    clean = backend.run_with_cache(inputs, [NAME])[1][NAME]
    for row in range(len(LENGTHS)):
        entry = HEAD * slots + int(first[row]) + 1
        without = Scale(at=NAME, factor=0.0, positions="answer", latents=[entry])
        patched = Patch(at=NAME, source=source, positions="answer", latents=range(HEAD * slots, (HEAD + 1) * slots))
        real = inputs.attention_mask[row].bool()
        tokens, answer = inputs.tokens[row, real].unsqueeze(0), int(inputs.answer_positions[row])
        values, projection = values_of(model, tokens)
        pattern, instead = (item[row, answer, HEAD, real] for item in (clean, source))
        for item, change in ((without, -pattern[1] * values[1]), (patched, (instead - pattern) @ values)):
            found = run_with_interventions(backend, inputs, [item])[row]

            def add(_: Any, args: Any, change: Tensor = change) -> Any:
                mixed = args[0].clone()
                mixed[0, -1, 8 * HEAD : 8 * HEAD + 8] += change
                return (mixed, *args[1:])

            with projection.register_forward_pre_hook(add):
                expected = model(input_ids=tokens).logits[0, -1]
            torch.testing.assert_close(found, expected, **CLOSE)
            assert (found - backend.run(inputs)[row]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bloom", "does not reach 'layers.1.attn_pattern'.*Take the outputs of heads, layers.1.attn_z"),
        ("gpt_oss", "parts that its pattern here would lack: s_aux"),
    ],
)
def test_what_mixes_values_otherwise_is_refused(kind: str, message: str) -> None:
    backend = HuggingFaceBackend(make_model(kind, torch.float32))
    with pytest.raises(it.HookPointError, match=message):
        backend.check_hook_points([NAME])


def test_heads_that_return_more_than_mixed_values_are_refused() -> None:
    model = make_model("llama")
    model.model.layers[LAYER].self_attn.o_proj.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    backend = backend_of(model)
    backend.check_hook_points([NAMES[0], NAMES[2]])
    with pytest.raises(it.HookPointError, match=f"does not reach '{NAME}'"):
        backend.check_hook_points([NAME])


def test_patterns_are_no_vectors_of_tokens() -> None:
    with pytest.raises(it.AnalysisError, match="attn_pattern is no vector of a token.*Heads"):
        it.effects(
            tiny_llama().eval(), tiny_tokenizer(), ["Bo likes"], (" Max", " Kit"), correct=0, units=it.Vector(NAME)
        )


def test_patterns_are_edited_while_a_model_generates() -> None:
    model = make_model("llama", torch.float32)
    seen: list[tuple[int, ...]] = []

    def look(pattern: Tensor) -> Tensor:
        seen.append(tuple(pattern.shape))
        return pattern

    inputs, asked = batch_of((4, 4), "left"), {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with backend_of(model).counted_hooks({NAME: look}):
        found = model.generate(inputs.tokens, **asked)
    assert seen == [(2, 4, 4, 4), (2, 1, 4, 5), (2, 1, 4, 6)]
    assert torch.equal(found, model.generate(inputs.tokens, **asked))
    assert model.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_dictionaries_of_queries_are_measured_by_whole_forwards() -> None:
    model, tokenizer = tiny_llama().double().eval(), tiny_tokenizer()
    coder, row = dictionary("layers.1.attn_q", 0), it.PromptRow("Bo likes the cat", (" Max", " Kit"))
    with pytest.warns(UserWarning, match="attn_q is inside attention"):
        table = it.effects(model, tokenizer, [row], units=coder).to_pandas()
    backend, tokens = HuggingFaceBackend(model, tokenizer), torch.tensor([tokenizer(row.prompt)["input_ids"]])
    inputs, line = ModelInputs(tokens, torch.ones_like(tokens)), table.loc[table.effect.abs().idxmax()]
    one, other = (tokenizer(answer, add_special_tokens=False)["input_ids"][0] for answer in row.answers)

    def difference(*changes: Any) -> float:
        logits = run_with_interventions(backend, inputs, changes, [coder])[0]
        return float(logits[one] - logits[other])

    off = Scale(at=activation_name(coder), positions="answer", latents=[line.unit], factor=0.0)
    assert line.effect == pytest.approx(difference() - difference(off), abs=1e-10)
    assert abs(line.effect) > 1e-3


def continued(kind: str, *changes: Any, **options: Any) -> Tensor:
    """Logits of four tokens that follow two prompts."""
    model, inputs = make_model(kind), batch_of((4, 7), "left")
    batch = {"input_ids": inputs.tokens, "attention_mask": inputs.attention_mask}
    told = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True, **options}

    def generate(given: Any) -> Any:
        return model.generate(**given, **told, eos_token_id=None)

    return torch.stack(generate_with_interventions(backend_of(model), generate, batch, changes).logits)


@pytest.mark.parametrize("part", ["attn_q", "attn_k", "attn_v"])
@torch.no_grad()
def test_those_of_a_prompt_stay_changed_in_a_cache(part: str) -> None:
    """In a model with a window, whose cache lets go of early tokens."""
    change = SetTo(at=f"layers.{LAYER}.{part}", positions=torch.tensor([5, 5]), latents=[9, 30], value=20.0)
    found = continued("mistral", change)
    torch.testing.assert_close(found, continued("mistral", change, use_cache=False), rtol=0, atol=1e-10)
    assert (found - continued("mistral")).abs().amax((1, 2))[[0, 2]].min() > 1e-3


def test_keys_in_a_cache_of_a_fixed_size_are_refused() -> None:
    change = SetTo(at=f"layers.{LAYER}.attn_k", positions="answer", value=1.0)
    with pytest.raises(it.AnalysisError, match="cache of a fixed size"):
        continued("llama", change, cache_implementation="static", disable_compile=True)
