"""Integrated gradients of questions, against a plain loop, and against what they must add up to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from interpretune.questions import Heads, Neurons, Vector, effects
from interpretune.testing.tiny_models import VOCABULARY, tiny_llama, tiny_tokenizer
from tests.questions.plain_loops import PlainLoops
from tests.questions.test_effects import LAYER, LONG, ROWS

STEPS = 2


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama().double().eval()


def test_integrated_gradients_are_those_of_a_plain_loop(model: Any) -> None:
    asked: dict[str, Any] = {"value": "corrupted", "objective": "log_prob", "method": "integrated_gradients"}
    found = effects(model, tiny_tokenizer(), ROWS, units=Neurons(LAYER), steps=STEPS, batch_size=3, **asked)
    plain, table = PlainLoops(model, LAYER, ()), found.to_pandas().set_index(["row", "unit"]).effect
    tokenizer = tiny_tokenizer()
    for i, row in enumerate(ROWS):
        ids, others = (tokenizer(text)["input_ids"] for text in (row.prompt, row.corrupted))
        end, start = (plain.seen(tokens, "mlp_act")[-1].detach() for tokens in (ids, others))
        slopes = []
        for k in range(STEPS):
            leaf = (start + (k + 0.5) / STEPS * (end - start)).requires_grad_()

            def put(activations: Tensor, leaf: Tensor = leaf) -> Tensor:
                return torch.cat([activations[:, :-1], leaf.expand(1, 1, -1)], 1)

            with plain.edited("mlp_act", put):
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            slopes += torch.autograd.grad(logits[VOCABULARY[row.answers[row.correct].strip()]], leaf)
        expected = (end - start) * torch.stack(slopes).mean(0)
        for unit, value in enumerate(expected.tolist()):
            assert table.get((i, unit), 0.0) == pytest.approx(value, abs=1e-10)
    assert table.abs().max() > 1e-4


@pytest.mark.parametrize(
    ("rows", "asked"),
    [
        (ROWS, {"objective": "kl"}),
        (ROWS[:3], {"objective": "prob", "value": "mean", "positions": "each"}),
        (LONG[:2], {"value": 0.3, "positions": "each"}),
    ],
)
def test_they_add_up_to_the_effect_of_all_units(model: Any, rows: Any, asked: dict[str, Any]) -> None:
    part = f"layers.{LAYER}.attn_z"
    whole = effects(model, tiny_tokenizer(), rows, units=Vector(part), **asked)
    path = effects(model, tiny_tokenizer(), rows, units=Heads(LAYER), method="integrated_gradients", steps=30, **asked)
    totals = path.to_pandas().groupby(["row", "position"]).effect.sum()
    exact = whole.to_pandas().set_index(["row", "position"]).effect
    assert exact.abs().max() > 1e-5
    for index, value in exact.items():
        assert totals[index] == pytest.approx(value, rel=2e-3, abs=1e-3 * exact.abs().max())
    assert path.question["steps"] == 30
