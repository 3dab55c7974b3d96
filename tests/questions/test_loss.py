"""The next-token loss of rows and spans, against a loop over single rows; rows without answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interpretune as it
from interpretune.questions import Loss
from interpretune.testing.tiny_models import tiny_llama, tiny_tokenizer

ROWS = [
    it.PromptRow("Ada sees the red dog near the", spans={"what": "red dog"}),
    it.PromptRow("Bo likes a boat and", (" Max", " Nora and Kit"), 1, spans={"what": "boat"}),
]


def loss_by_hand(model: Any, row: it.PromptRow, span: str | None, position: int | None = None, head: int = 0) -> float:
    tokenizer = tiny_tokenizer()
    prompt = tokenizer(row.prompt)["input_ids"]
    answer = tokenizer(row.answers[row.correct], add_special_tokens=False)["input_ids"] if row.answers else []
    ids, counted = torch.tensor([*prompt, *answer]), range(1, len(prompt) + len(answer))
    if span is not None:
        before = tokenizer(row.prompt[: row.prompt.index(row.spans[span])].rstrip())["input_ids"]
        size = len(tokenizer(f" {row.spans[span]}", add_special_tokens=False)["input_ids"])
        counted = range(len(before), len(before) + size)

    def zero(_: Any, args: Any) -> Any:
        z = args[0].clone()
        if position is not None:
            z[0, position].view(4, -1)[head] = 0
        return (z,)

    handle = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(zero)
    with torch.no_grad():
        log_probs = model(input_ids=ids.unsqueeze(0)).logits[0].log_softmax(-1)
    handle.remove()
    return -sum(log_probs[i - 1, ids[i]].item() for i in counted) / len(counted)


@pytest.mark.parametrize(("span", "side"), [(None, "left"), ("what", "right")])
def test_effects_on_the_loss_are_those_of_a_plain_loop(span: str | None, side: str) -> None:
    model = tiny_llama().double().eval()
    found = it.effects(
        model, tiny_tokenizer(side), ROWS, units=it.Heads(1), objective={"loss": {"span": span}}, positions="each"
    )
    table = found.to_pandas().set_index(["row", "position", "unit"]).effect
    for i, row in enumerate(ROWS):
        clean = loss_by_hand(model, row, span)
        assert found.rows().objective[i] == pytest.approx(clean, abs=1e-10)
        for position in range(len(tiny_tokenizer()(row.prompt)["input_ids"])):
            for head in range(4):
                expected = clean - loss_by_hand(model, row, span, position, head)
                assert table.get((i, position, head), 0.0) == pytest.approx(expected, abs=1e-10)
    assert table.abs().max() > 1e-4
    assert set(found.rows().predicted) == {-1}


def test_rows_without_answers_are_for_objectives_that_read_none() -> None:
    model = tiny_llama().double().eval()
    asked = {"units": it.Heads(1), "objective": "kl", "value": "mean", "mean_over": ["He has"]}
    found = it.effects(model, tiny_tokenizer(), [ROWS[0].prompt], answers=(), **asked)
    assert (found.to_pandas().effect < 0).all()
    with pytest.raises(it.DataError, match="Row 0 has no answers, and log_prob is of them"):
        it.effects(model, tiny_tokenizer(), ROWS, units=it.Heads(1), objective="log_prob")
    with pytest.raises(it.DataError, match="no span 'who'"):
        it.effects(model, tiny_tokenizer(), ROWS, units=it.Heads(1), objective=Loss("who"))
