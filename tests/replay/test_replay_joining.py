"""Rows of several latent models that are ablated in one call run the blocks above the highest one together."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from interpretune.activations.inputs import ModelInputs
from interpretune.analysis import HuggingFaceBackend, LatentModel, LatentRows, Points, Prefill, ablate, activation_name
from interpretune.latents.identity import IdentityDictionary
from interpretune.replay import Changes, ablate_from
from tests.replay.ablated_rows import ATOL, active_rows, error_of, worst_error
from tests.tiny_architectures import NEURONS, WIDTH, backend_of, batch_of, dictionary, make_model

LENGTHS = (9, 4, 12, 1)
LOW, MIDDLE, HIGH = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"


@pytest.fixture
def backend() -> HuggingFaceBackend:
    return backend_of(make_model("llama"), special=(7,))


def prefilled(backend: HuggingFaceBackend, *places: str, **settings: Any) -> Prefill:
    models = [dictionary(place, i, **settings) for i, place in enumerate(places)]
    return backend.prefill(batch_of(LENGTHS, "left"), models, self_check=False)


def rows_of_all(prefill: Prefill) -> LatentRows:
    return LatentRows.joined([active_rows(prefill, activation_name(m)) for m in prefill.latent_models.values()])


def runs_of_blocks(backend: HuggingFaceBackend, prefill: Prefill, rows: LatentRows, **options: Any) -> list[int]:
    found: Counter[int] = Counter()
    assert backend.blocks is not None
    blocks = backend.blocks[1]
    attention: list[Any] = [block.attn if hasattr(block, "attn") else block.self_attn for block in blocks]
    handles = [
        module.register_forward_pre_hook(lambda *_, i=i: found.update([i])) for i, module in enumerate(attention)
    ]
    ablate(prefill, rows, **options)
    for handle in handles:
        handle.remove()
    return [found[i] for i in range(len(blocks))]


def test_rows_that_write_the_residual_stream_join(backend: HuggingFaceBackend) -> None:
    prefill = prefilled(backend, LOW, MIDDLE, HIGH)
    assert runs_of_blocks(backend, prefill, rows_of_all(prefill)) == [0, 1, 1, 1]
    assert worst_error(prefill) < ATOL


def test_rows_of_what_stands_in_a_block_or_after_the_last_one_run_alone(backend: HuggingFaceBackend) -> None:
    prefill = prefilled(backend, LOW, "blocks.1.hook_mlp_out", HIGH, "blocks.3.hook_resid_post")
    assert runs_of_blocks(backend, prefill, rows_of_all(prefill)) == [0, 2, 2, 2]
    assert worst_error(prefill) < ATOL


def test_rows_within_a_block_join_where_others_stay_as_they_are(backend: HuggingFaceBackend) -> None:
    """Neurons and heads of several blocks, a dictionary that is spliced in, one with its error added, and one above."""
    models: list[LatentModel] = [
        IdentityDictionary("layers.1.mlp_act", NEURONS),
        IdentityDictionary("layers.0.attn_z", WIDTH),
        dictionary(LOW, 0),
        IdentityDictionary("layers.1.attn_z", WIDTH),
        dictionary("blocks.2.hook_mlp_out", 1, error=True),
    ]
    prefill = backend.prefill(batch_of(LENGTHS, "left"), models, self_check=False)
    rows = rows_of_all(prefill)
    assert runs_of_blocks(backend, prefill, rows) == [1, 1, 1, 1]
    assert worst_error(prefill) < ATOL
    assert runs_of_blocks(backend, prefill, rows, naive=True) == [3, 3, 3, 3]  # neurons and heads are one forward
    torch.testing.assert_close(ablate(prefill, rows, naive=True), ablate(prefill, rows), rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    ("kind", "runs"),
    [("llama", [0, 0, 1, 1]), ("gpt2", [0, 0, 1, 1]), ("gemma3", [0, 0, 1, 1]), ("granite", [0, 1, 1, 1])],
)
def test_rows_of_neurons_begin_above_their_block(kind: str, runs: list[int]) -> None:
    """Also where a norm follows the MLP; not where a block multiplies what the MLP writes by a constant."""
    backend, inputs = backend_of(make_model(kind)), batch_of(LENGTHS, "left")
    width = backend.capture(inputs, ["layers.1.mlp_act"])["layers.1.mlp_act"].shape[-1]
    models = [IdentityDictionary(f"layers.{layer}.mlp_act", width) for layer in (3, 1)]
    lower, upper = map(activation_name, reversed(models))
    prefill = backend.prefill(inputs, models, self_check=False)
    pairs = torch.cartesian_prod(torch.arange(len(LENGTHS)), torch.tensor([2, 17]))
    single = LatentRows.joined([LatentRows.single(name, pairs, 0.7) for name in (lower, upper)])
    together = LatentRows.sets(upper, torch.tensor([2, 0]), [torch.arange(30), torch.tensor([4])], -0.3)
    one = Changes(torch.tensor([0]), torch.tensor([7]), torch.tensor([1.0]))
    both = LatentRows(torch.tensor([1]), {lower: one, upper: one})
    assert runs_of_blocks(backend, prefill, single) == runs
    for rows in (single, together, both):
        assert error_of(prefill, rows) < ATOL
    points = Points(*inputs.attention_mask.nonzero().unbind(-1))
    everywhere = backend.prefill(inputs, models, points, self_check=False)
    rows = LatentRows.joined([LatentRows.single(name, torch.tensor([[0, 3], [9, 17]]), 0.7) for name in (lower, upper)])
    found = [ablate_from(everywhere, rows, naive=naive) for naive in (True, False)]
    torch.testing.assert_close(*found, rtol=0, atol=ATOL)


def test_a_factor_shows_beside_a_huge_coordinate_in_16_bits() -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GraniteConfig(**sizes, vocab_size=20, residual_multiplier=0.7, initializer_range=0.1, pad_token_id=0)
    model = GraniteForCausalLM(config).eval().bfloat16()
    with torch.no_grad():
        model.model.embed_tokens.weight[9, 3] = 300.0
    inputs = ModelInputs(torch.tensor([[9, 5, 6, 7]]), torch.ones(1, 4, dtype=torch.long))
    points = Points(torch.zeros(4, dtype=torch.long), torch.arange(4))
    neurons = IdentityDictionary("layers.0.mlp_act", 16)
    prefill = backend_of(model).prefill(inputs, [neurons], points, self_check=False)
    assert not prefill.require_kept().projected


def test_decoders_that_are_not_linear_run_alone(backend: HuggingFaceBackend) -> None:
    prefill = prefilled(backend, LOW, HIGH, linear=False)
    assert runs_of_blocks(backend, prefill, rows_of_all(prefill)) == [1, 1, 2, 2]
    assert worst_error(prefill) < ATOL


def test_a_budget_of_rows_holds_for_what_has_joined(backend: HuggingFaceBackend) -> None:
    prefill = prefilled(backend, LOW, HIGH)
    rows, seen = rows_of_all(prefill), []
    handle = backend.model.model.layers[3].mlp.register_forward_hook(  # type: ignore[union-attr,index]
        lambda _, __, output: seen.append(len(output))
    )
    ablate(prefill, rows, row_budget=5)
    handle.remove()
    changing = sum(int((latents > 0).sum()) for latents in prefill.latents.values())
    assert sum(seen) == changing
    assert max(seen) == 5


def test_the_order_of_latent_models_and_of_rows_does_not_matter(backend: HuggingFaceBackend) -> None:
    prefill = prefilled(backend, HIGH, LOW, MIDDLE)
    rows = rows_of_all(prefill)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ablate(prefill, rows.select(order)), ablate(prefill, rows)[order], rtol=0, atol=ATOL)
    assert worst_error(prefill) < ATOL


def test_joined_rows_keep_what_each_sets() -> None:
    one = LatentRows.single("a", torch.tensor([[0, 3], [1, 4]]), 2.0)
    other = LatentRows(
        torch.tensor([1]),
        {
            "b": Changes(torch.tensor([0, 0]), torch.tensor([5, 6]), torch.tensor([0.5, 0.25])),
            "a": Changes(torch.tensor([0]), torch.tensor([7]), torch.tensor([1.0])),
        },
    )
    joined = LatentRows.joined([one, other])
    assert joined.points.tolist() == [0, 1, 1]
    found = {
        name: list(zip(item.rows.tolist(), item.latents.tolist(), item.values.tolist(), strict=True))
        for name, item in joined.changes.items()
    }
    assert found == {"a": [(0, 3, 2.0), (1, 4, 2.0), (2, 7, 1.0)], "b": [(2, 5, 0.5), (2, 6, 0.25)]}
