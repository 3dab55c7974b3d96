"""Rotary embeddings that follow the longest row: effects are the batch's for every row budget, and it is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from interpretune.analysis import ModelInputs, ablate, activation_name
from interpretune.replay.ablation import ablate_everywhere
from tests.replay.ablated_rows import active_rows
from tests.tiny_architectures import BLOCKS, VOCABULARY, WIDTH, backend_of, batch_of, dictionary, make_model
from tests.tiny_latents import hooked

LIMIT = 8
PLACE = "blocks.1.hook_resid_post"


def model_of(kind: str) -> Any:
    """A tiny Phi-3 with two sets of frequencies, or a Llama whose frequencies grow with the text."""
    common = {
        "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": BLOCKS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if kind == "longrope":
        factors: dict[str, Any] = {"short_factor": [1.0] * 4, "long_factor": [1.5, 2.5, 4.0, 8.0]}
        factors["original_max_position_embeddings"] = LIMIT
        config: Any = hf.Phi3Config(
            **common, max_position_embeddings=64, original_max_position_embeddings=LIMIT,
            rope_parameters={"rope_type": "longrope", "rope_theta": 100.0, **factors},
        )  # fmt: skip
    else:
        config = hf.LlamaConfig(
            **common, max_position_embeddings=LIMIT,
            rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0},
        )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(std=0.25)
    return model.double()


def whole_batch(model: Any, inputs: ModelInputs, item: Any, point: int, latent: int | None) -> Tensor:
    """Logits of one example in a forward of the whole batch, by torch hooks."""

    def splice(x: Tensor) -> Tensor:
        latents = item.encode(x)
        if latent is not None:
            latents[point, inputs.answer_positions[point], latent] = 0
        return item.decode(latents)

    with torch.no_grad(), hooked(model, [(PLACE, splice)]):
        positions = (inputs.attention_mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(
            input_ids=inputs.tokens, attention_mask=inputs.attention_mask, position_ids=positions, use_cache=False
        ).logits
    return logits[point, inputs.answer_positions[point]]


@pytest.mark.parametrize(("kind", "side"), [("longrope", "left"), ("dynamic", "right")])
def test_effects_are_those_of_the_batch_for_every_row_budget(kind: str, side: str) -> None:
    model, inputs, item = model_of(kind), batch_of((4, 14, 6, 5), side), dictionary(PLACE, 1, d_sae=10)
    with pytest.warns(UserWarning, match=f"{kind}.*depend on the rows beside it.*like length.*whole forward"):
        prefill = backend_of(model).prefill(inputs, [item])
    assert prefill.kept is None
    rows = active_rows(prefill, activation_name(item))
    wanted = torch.stack(
        [
            whole_batch(model, inputs, item, int(point), int(latent))
            for point, latent in zip(rows.points, rows.changes[activation_name(item)].latents, strict=True)
        ]
    )
    clean = torch.stack([whole_batch(model, inputs, item, point, None) for point in range(len(inputs))])
    torch.testing.assert_close(prefill.logits, clean, rtol=0, atol=1e-6)
    for budget in (1, 3, None):
        torch.testing.assert_close(ablate(prefill, rows, row_budget=budget), wanted, rtol=0, atol=1e-6)
    everywhere = [ablate_everywhere(prefill, rows, row_budget=budget) for budget in (1, 3, None)]
    torch.testing.assert_close(everywhere[0], everywhere[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(everywhere[0], everywhere[2], rtol=0, atol=1e-6)
    real = inputs.attention_mask[0].bool()
    row = ModelInputs(inputs.tokens[:1, real], inputs.attention_mask[:1, real])
    assert (whole_batch(model_of(kind), row, item, 0, None) - clean[0]).abs().max() > 1e-3  # beside others it differs


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_short_texts_of_such_a_model_are_replayed(kind: str) -> None:
    prefill = backend_of(model_of(kind)).prefill(batch_of((4, LIMIT, 6), "left"), [dictionary(PLACE, 1)])
    assert prefill.kept is not None
    rows = active_rows(prefill, activation_name(dictionary(PLACE, 1)))
    torch.testing.assert_close(ablate(prefill, rows), ablate(prefill, rows, naive=True), rtol=0, atol=1e-6)


class FollowsLongest(nn.Module):
    """A rotary embedding of a kind that no configuration names: positions are stretched in batches with long rows."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary

    def forward(self, x: Tensor, position_ids: Tensor) -> Any:
        stretch = 3.0 if int(position_ids.max()) >= LIMIT else 1.0
        return self.rotary(x, position_ids * stretch)


def test_the_self_check_finds_rows_that_depend_on_others() -> None:
    model = make_model("llama")
    model.model.rotary_emb = FollowsLongest(model.model.rotary_emb)
    backend = backend_of(model)
    inputs, item = batch_of((4, 14), "left"), dictionary(PLACE, 1)
    with pytest.warns(UserWarning, match="row of 4 tokens differ by .* beside a row of 14.*on the rows beside it"):
        assert backend.prefill(inputs, [item]).kept is None
    assert backend_of(make_model("llama")).prefill(inputs, [item]).kept is not None
