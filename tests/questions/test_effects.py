"""Gradient effects, and what a budget is spent on; exact effects are in ``test_plain_loops.py``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel

from interpretune.questions import Heads, Neurons, PromptRow, effects
from interpretune.questions.in_words import told
from interpretune.testing.tiny_models import VOCABULARY, tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.questions.plain_loops import PlainLoops
from tests.tiny_latents import RandomDictionary

LAYER = 1
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 8,
    "num_key_value_heads": 2,
    "vocab_size": len(VOCABULARY),
}


def tiny_gemma3() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        **SIZES,
        sliding_window=4,
        pad_token_id=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    return Gemma3ForCausalLM(config)


MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "gemma3": tiny_gemma3}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    model: PreTrainedModel = MODELS[request.param]().double().eval()
    with torch.no_grad():  # larger weights, so that effects are far above rounding
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


ROWS = [
    PromptRow("Ada sees the red dog near the", (" house", " tree"), 0, "Ada sees the old dog near the"),
    PromptRow("Bo likes a boat and", (" Max", " Nora"), 1, "Bo likes a lamp and"),
    PromptRow("the small cat was", (" red", " blue"), 0, "the large cat was"),
    PromptRow(
        "Finn paints the old green door in the quiet",
        (" park", " office"),
        1,
        "Eve paints the old green door in the quiet",
    ),
    PromptRow("He has", (" bread", " stone"), 0, "He had"),
]


class Dictionary:
    """A random dictionary with a linear decoder."""

    name, dashboard_url, skips_special_tokens = "coder", staticmethod(lambda: None), False

    def __init__(self, hook_point: str, width: int, error: bool, latents: int = 24) -> None:
        draw = torch.Generator().manual_seed(1)
        self.encoder = torch.randn(width, latents, generator=draw, dtype=torch.float64) / width**0.5
        self.decoder = torch.randn(latents, width, generator=draw, dtype=torch.float64) / latents**0.5
        self.hook_point = self.output_hook_point = hook_point
        self.d_in, self.d_sae, self.use_error_term = width, latents, error

    def encode(self, activations: Tensor) -> Tensor:
        return (activations @ self.encoder).relu()

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.decoder

    def decoder_rows(self, latents: Tensor) -> Tensor:
        return self.decoder[latents]


LONG = [
    PromptRow("Ada sees the red dog near the", (" old house", " old tree"), 0, "Ada sees the old dog near the"),
    PromptRow("Bo likes a boat and", (" Max", " Nora and Kit"), 1, "Bo likes a lamp and", {"what": "boat"}),
    PromptRow("He has", (" red bread today", " stone"), 0, "She had"),
]


def test_gradient_effects_are_those_of_autograd(model):
    found = effects(
        model, tiny_tokenizer(), LONG, units=Neurons(LAYER), value="corrupted", method="gradient", positions="each"
    )
    tokenizer, table = tiny_tokenizer(), found.to_pandas().set_index(["row", "position", "unit"]).effect
    plain = PlainLoops(model, LAYER, [])
    for i, row in enumerate(LONG):
        ids = tokenizer(row.prompt)["input_ids"]
        total, seen = 0.0, []
        for j, answer in enumerate(row.answers):
            more = tokenizer(answer, add_special_tokens=False)["input_ids"]

            def keep(_: Any, args: Any, seen: list[Tensor] = seen) -> None:
                args[0].retain_grad()
                seen.append(args[0])

            handle = plain.at["mlp_act"][0].register_forward_pre_hook(keep)
            logits = model(input_ids=torch.tensor([ids + more])).logits[0].log_softmax(-1)
            handle.remove()
            score = sum(logits[len(ids) - 1 + k, token] for k, token in enumerate(more))
            total = total + (score if j == row.correct else -score)
        total.backward()
        slope = sum(tensor.grad[0, : len(ids)] for tensor in seen)
        other = plain.seen(tokenizer(row.corrupted)["input_ids"], "mlp_act")
        expected = (seen[0].detach()[0, : len(ids)] - other) * slope
        for position in range(len(ids)):
            for unit in range(expected.shape[1]):
                assert table.get((i, position, unit), 0.0) == pytest.approx(expected[position, unit].item(), abs=1e-10)


def test_a_head_is_changed_where_one_coordinate_stays():
    model = tiny_llama().double().eval()
    values = torch.zeros(32).double()
    tokenizer = tiny_tokenizer()
    values[0] = PlainLoops(model, LAYER, ()).seen(tokenizer("He has")["input_ids"], "attn_z")[-1, 0]
    units, value = Heads(LAYER, 0), {f"layers.{LAYER}.attn_z": values}
    table = effects(model, tokenizer, [PromptRow("He has", (" bread", " stone"))], units=units, value=value)
    assert table.to_pandas().effect.abs().max() > 1e-6


def test_units_that_change_nothing_have_no_effects():
    row = PromptRow("He has", (" bread", " stone"), corrupted="He has")
    found = effects(tiny_llama().eval(), tiny_tokenizer(), [row], units=Heads(LAYER), value="corrupted")
    assert len(found.rows()) == 1
    assert not found.to_pandas().effect.any()


def test_a_row_without_answers_runs_beside_answers_of_several_tokens():
    rows = [PromptRow("He has"), PromptRow("She sees Bo", (" bread", " stone and bread"))]
    model, asked = tiny_llama().double().eval(), {"units": Heads(LAYER), "objective": "kl"}
    apart = [effects(model, tiny_tokenizer(), [row], **asked).to_pandas().effect.tolist() for row in rows]
    table = effects(model, tiny_tokenizer(), rows, batch_size=2, **asked).to_pandas()
    for number, expected in enumerate(apart):
        assert min(expected) < -1e-6
        assert table[table.row == number].effect.tolist() == pytest.approx(expected, abs=1e-10)


def test_dictionaries_evaluate_while_effects_are_found():
    modes = []

    class Noting(RandomDictionary):
        def encode(self, activations: Tensor) -> Tensor:
            modes.append(self.training)
            return super().encode(activations)

    dictionary = Noting(f"layers.{LAYER}.resid_post").double().train()
    rows = [PromptRow("He has", (" bread", " stone"))]
    effects(tiny_llama().double().eval(), tiny_tokenizer(), rows, units=dictionary)
    assert modes
    assert not any(modes)
    assert dictionary.training


def test_a_budget_is_for_the_largest_gradients_of_all_batches(model):
    rows = ROWS[:2]
    everything = effects(model, tiny_tokenizer(), rows, units=Neurons(LAYER), positions="each", batch_size=2)
    rough = effects(
        model, tiny_tokenizer(), rows, units=Neurons(LAYER), positions="each", batch_size=2, method="gradient"
    )
    some = effects(model, tiny_tokenizer(), rows, units=Neurons(LAYER), positions="each", batch_size=1, budget=30)
    names = ["row", "position", "unit"]
    exact, ranked, kept = (item.to_pandas().set_index(names).effect for item in (everything, rough, some))
    best = ranked.abs().sort_values(ascending=False).index
    assert set(kept.index) == set(best[:30])
    assert all(kept[index] == pytest.approx(exact[index], abs=1e-12) for index in kept.index)
    points = some.points()
    assert points.screened_out.sum() == len(exact) - 30
    assert points.largest_screened.max() == pytest.approx(abs(ranked[best[30]]))
    told = f"({len(exact) - 30} left out for the budget, by gradient at most {points.largest_screened.max():.3g})"
    assert told in repr(some)
    assert told in some.plot().layout.title.text
    assert "left out" not in repr(everything)


def test_a_store_notes_the_call_and_does_not_depend_on_it(tmp_path):
    def asked(name: str) -> Any:
        units = [Heads(1), RandomDictionary("layers.1.resid_post")]
        row = PromptRow("Ada sees the red dog near the", (" house", " tree"))
        return effects(tiny_llama(), tiny_tokenizer(), [row], units=units, objective="kl", store=tmp_path / name).store

    call = "it.effects(model, tokenizer, prompts, units=[Heads(layer=1), RandomDictionary], objective='kl', store='{}')"
    for name in ("one", "other"):
        assert asked(name).manifest.about["made_by"] == {"call": call.format(name)}
    assert asked("one").manifest.key == asked("other").manifest.key
    assert told({"rows": ["a"] * 101, "file": "/home/me/rows.csv", "loss": float("nan")}) == {
        "rows": "(101 entries)",
        "file": "rows.csv",
        "loss": "nan",
    }
