"""Replays of single tokens give the logits of whole forwards, in float64 to 1e-10."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

from interpretune.analysis import HuggingFaceBackend, LatentModel, LatentRows, Points, ablate, activation_name
from interpretune.replay import budgets
from interpretune.replay.ablation import ablate_everywhere
from tests.replay.ablated_rows import ATOL, EAGER_ATOL, Row, active_rows, error_of, reference, rows_of, worst_error
from tests.tiny_architectures import CONFIGS, backend_of, batch_of, dictionary, make_model
from tests.tiny_latents import FixedDictionary

SPECIAL = (7, 11, 13)
RAGGED = (9, 4, 12, 1)
UPPER_PLACE = {"opt": "blocks.3.hook_attn_out"}  # its MLP works on flat rows


@cache
def backend(kind: str = "llama", dtype: torch.dtype = torch.float64) -> HuggingFaceBackend:
    return backend_of(make_model(kind, dtype), SPECIAL)


# ------------------------------------------------------------------------------------------------------- architectures


BATCHES = [
    *((kind, RAGGED, ("left", "right")[i % 2]) for i, kind in enumerate(CONFIGS)),
    *((kind, (11,), "left") for kind in ("llama", "gpt2", "gemma2", "gemma3", "neox")),
]


@pytest.mark.parametrize(("kind", "lengths", "side"), BATCHES)
def test_every_architecture_is_exact(kind: str, lengths: Sequence[int], side: str) -> None:
    if kind == "gemma2":
        lengths = [12] * len(lengths)
    models = [dictionary("blocks.1.hook_resid_post", 1), dictionary(UPPER_PLACE.get(kind, "blocks.3.hook_mlp_out"), 2)]
    bound = EAGER_ATOL if kind == "gemma2" else ATOL
    assert worst_error(backend(kind).prefill(batch_of(lengths, side), models)) < bound


@pytest.mark.parametrize("side", ["left", "right"])
def test_gemma2_with_padding_is_exact_in_float32(side: str) -> None:
    models = [dictionary("blocks.1.hook_resid_post", 1).float(), dictionary("blocks.3.hook_mlp_out", 2).float()]
    assert worst_error(backend("gemma2", torch.float32).prefill(batch_of(RAGGED, side), models)) < 2e-5


# --------------------------------------------------------------------------------------------- places of latent models

TRANSCODER = ("model.layers.1.mlp:in", "blocks.1.hook_mlp_out")
PLACES: dict[str, list[tuple[str, str | None]]] = {
    "embedding": [("blocks.0.hook_resid_pre", None)],
    "resid_pre": [("blocks.2.hook_resid_pre", None)],
    "resid_post": [("blocks.1.hook_resid_post", None)],
    "last": [("blocks.3.hook_resid_post", None)],
    "hook_z": [("blocks.1.attn.hook_z", None)],
    "attn_out": [("blocks.1.hook_attn_out", None)],
    "mlp_act": [("blocks.1.mlp.hook_post", None)],
    "mlp_out": [("blocks.1.hook_mlp_out", None)],
    "transcoder": [TRANSCODER],
    "across blocks": [("blocks.1.hook_resid_pre", "blocks.2.hook_mlp_out"), ("blocks.2.hook_resid_pre", None)],
    "read where a transcoder writes": [TRANSCODER, ("blocks.1.hook_mlp_out", None)],
    "two at one boundary": [("blocks.1.hook_resid_post", None), ("blocks.2.hook_resid_pre", None)],
    "three, the highest first": [
        ("blocks.3.hook_resid_post", None),
        ("blocks.1.hook_mlp_out", None),
        ("blocks.1.attn.hook_z", None),
    ],
}
VARIANTS: dict[str, dict[str, bool]] = {
    "linear": {"skips": True},
    "decoded": {"linear": False, "skips": True},
    "linear with error": {"error": True},
    "decoded with error": {"linear": False, "error": True, "skips": True},
}


def models_at(places: str, **settings: Any) -> list[LatentModel]:
    return [dictionary(read, i, output=write, **settings) for i, (read, write) in enumerate(PLACES[places])]


def every_latent_together(prefill: Any) -> list[Row]:
    """Rows that set latents of all latent models, also such that are not active in the clean run."""
    rows = []
    for point in range(len(prefill.points)):
        for seed in range(3):
            draw = torch.Generator().manual_seed(seed)
            sets = {name: torch.randperm(24, generator=draw)[:9].tolist() for name in prefill.latent_models}
            rows.append((point, {name: dict.fromkeys(ids, seed / 3) for name, ids in sets.items()}))
    return rows


IN_TURN = [(places, variant) for i, places in enumerate(PLACES) for variant in (*VARIANTS, *VARIANTS)[2 * i % 4 :][:2]]
"""A linear and a decoded dictionary at each place, in turn with its error or without."""


@pytest.mark.parametrize(("places", "variant"), IN_TURN)
def test_every_place_and_kind_of_latent_model_is_exact(places: str, variant: str) -> None:
    prefill = backend().prefill(batch_of(RAGGED, "left"), models_at(places, **VARIANTS[variant]))
    assert worst_error(prefill) < ATOL
    assert error_of(prefill, rows_of(every_latent_together(prefill))) < ATOL


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("llama", "read where a transcoder writes"),
        ("llama", "two at one boundary"),
        ("llama", "three, the highest first"),
        ("gpt2", "three, the highest first"),
    ],
)
def test_rows_over_several_latent_models_equal_a_loop_that_knows_no_library(
    kind: str, places: str, linear: bool
) -> None:
    inputs = batch_of(RAGGED, "left")
    models = models_at(places, linear=linear, skips=True)
    prefill = backend(kind).prefill(inputs, models)
    rows = every_latent_together(prefill)
    wanted = reference(backend(kind).model, inputs, models, prefill.points, rows, SPECIAL)
    for plain_loop in (False, False, True):
        found = ablate(prefill, rows_of(rows), naive=plain_loop)
        torch.testing.assert_close(found, wanted, rtol=0, atol=ATOL)
    assert (wanted - prefill.logits[rows_of(rows).points]).abs().amax(-1).min() > 1e-3


def test_changes_below_wake_latents_above() -> None:
    """A row holds an inactive latent at 0 that what it changes below would make active."""
    inputs = batch_of((8,), "left")
    lower, _ = models = [dictionary("blocks.1.hook_resid_post", 1), dictionary("blocks.2.hook_resid_post", 2)]
    prefill = backend().prefill(inputs, models)
    low, high = map(activation_name, models)
    everything = {low: dict.fromkeys(range(lower.d_sae), 0.0)}
    silent = {high: dict.fromkeys((prefill.latents[high][0] == 0).nonzero().flatten().tolist(), 0.0)}
    rows: list[Row] = [(0, everything), (0, {**everything, **silent}), (0, silent)]
    wanted = reference(backend().model, inputs, models, prefill.points, rows)
    for plain_loop in (False, True):
        torch.testing.assert_close(ablate(prefill, rows_of(rows), naive=plain_loop), wanted, rtol=0, atol=ATOL)
    assert (wanted[0] - wanted[1]).abs().max() > 1e-3
    torch.testing.assert_close(wanted[2], prefill.logits[0], rtol=0, atol=ATOL)


# ------------------------------------------------------------------------------------------- values, points, positions

LOWER, UPPER = dictionary("blocks.1.hook_resid_post", 1, skips=True), dictionary("blocks.2.hook_mlp_out", 2)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_any_points_of_any_example_can_be_run_again(kind: str, side: str) -> None:
    """Several of one example, in no order; a latent model that skips special tokens leaves some of them alone."""
    inputs = batch_of((9, 4, 12), side)
    starts = inputs.attention_mask.argmax(-1)
    examples, offsets = torch.tensor([2, 0, 2, 1, 2, 0]), torch.tensor([7, 0, 11, 2, 7, 8])
    points = Points(examples, starts[examples] + offsets)
    inputs.tokens[1, points.positions[3]] = SPECIAL[0]
    prefill = backend(kind).prefill(inputs, [LOWER, UPPER], points)
    assert worst_error(prefill) < ATOL
    left_alone = prefill.untouched[activation_name(LOWER)]
    assert left_alone.tolist() == [False, True, False, True, False, False]
    assert not prefill.latents[activation_name(LOWER)][left_alone].any()
    if kind == "llama":
        rows = every_latent_together(prefill)
        wanted = reference(backend(kind).model, inputs, [LOWER, UPPER], points, rows, SPECIAL)
        torch.testing.assert_close(ablate(prefill, rows_of(rows)), wanted, rtol=0, atol=ATOL)


@pytest.mark.parametrize("settings", [{}, {"linear": False}, {"error": True}], ids=str)
def test_points_may_lie_in_one_example_alone(settings: dict[str, bool]) -> None:
    """The batch is split by length: one of its parts has no points."""
    for lengths, example in (((2, 12, 2), 1), ((2, 12, 2), 2), ((12, 2), 0)):
        inputs = batch_of(lengths, "left")
        points = Points(torch.tensor([example, example]), torch.tensor([11, 10]))
        models = models_at("resid_post", **settings)
        prefill = backend().prefill(inputs, models, points)
        assert worst_error(prefill) < ATOL
        wanted = backend().prefill(inputs.select(torch.tensor([example])), models).logits
        torch.testing.assert_close(prefill.logits[:1], wanted, rtol=0, atol=ATOL)


def test_points_of_texts_of_one_token_keep_their_order() -> None:
    inputs = batch_of((1, 1), "left")
    there, back = (
        backend().prefill(inputs, [UPPER], Points(torch.tensor(order), torch.tensor([0, 0])))
        for order in ([0, 1], [1, 0])
    )
    name = activation_name(UPPER)
    assert not torch.equal(there.latents[name][0], there.latents[name][1])
    torch.testing.assert_close(back.latents[name], there.latents[name].flip(0))
    assert worst_error(back) < ATOL


def test_latents_can_be_set_to_any_value_such_as_their_mean() -> None:
    inputs = batch_of(RAGGED, "right")
    prefill = backend().prefill(inputs, [LOWER, UPPER])
    name = activation_name(UPPER)
    means = prefill.latents[name].mean(0)
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(10))
    rows = LatentRows.single(name, pairs, means[pairs[:, 1]])
    assert error_of(prefill, rows) < ATOL
    listed: list[Row] = [(point, {name: {latent: means[latent].item()}}) for point, latent in pairs.tolist()]
    wanted = reference(backend().model, inputs, [LOWER, UPPER], prefill.points, listed, SPECIAL)
    torch.testing.assert_close(ablate(prefill, rows), wanted, rtol=0, atol=ATOL)
    one_number = reference(backend().model, inputs, [LOWER, UPPER], prefill.points, [(0, {name: {3: 0.3}})], SPECIAL)
    single = LatentRows.single(name, torch.tensor([[0, 3]]), 0.3)
    torch.testing.assert_close(ablate(prefill, single), one_number, rtol=0, atol=ATOL)


def test_sets_of_latents_are_ablated_together() -> None:
    inputs = batch_of(RAGGED, "left")
    prefill = backend().prefill(inputs, [LOWER, UPPER])
    name = activation_name(LOWER)
    points, sets = torch.tensor([2, 0, 3, 2]), [[0, 5, 9, 20], list(range(24)), [], [1]]
    rows = LatentRows.sets(name, points, [torch.tensor(ids, dtype=torch.long) for ids in sets])
    listed: list[Row] = [(p, {name: dict.fromkeys(ids, 0.0)}) for p, ids in zip(points.tolist(), sets, strict=True)]
    wanted = reference(backend().model, inputs, [LOWER, UPPER], prefill.points, listed, SPECIAL)
    torch.testing.assert_close(ablate(prefill, rows), wanted, rtol=0, atol=ATOL)
    assert error_of(prefill, rows) < ATOL
    assert len(LatentRows.sets(name, points[:0], [], [])) == 0


@pytest.mark.parametrize("places", ["resid_pre", "across blocks", "last", "three, the highest first"])
@pytest.mark.parametrize("linear", [True, False])
def test_ablation_at_all_positions_equals_a_loop(places: str, linear: bool) -> None:
    inputs = batch_of((9, 4, 12), "left")
    models = models_at(places, linear=linear, skips=True)
    prefill = backend().prefill(inputs, models, Points(torch.tensor([2, 0, 1, 2]), torch.tensor([9, 11, 10, 11])))
    rows = every_latent_together(prefill)[::-1]
    for budget in (1, 4, None):
        found = ablate_everywhere(prefill, rows_of(rows), row_budget=budget)
        wanted = reference(backend().model, inputs, models, prefill.points, rows, SPECIAL, everywhere=True)
        torch.testing.assert_close(found, wanted, rtol=0, atol=ATOL)
    columns = torch.tensor([9, 3])
    assert torch.equal(ablate_everywhere(prefill, rows_of(rows), columns), found[:, columns])
    if places != "last":  # no attention follows
        assert (found - ablate(prefill, rows_of(rows))).abs().max() > 1e-3


def test_rows_that_set_nothing_give_the_clean_logits() -> None:
    prefill = backend().prefill(batch_of(RAGGED, "left"), [LOWER, UPPER])
    points = torch.tensor([3, 0])
    for run in (ablate, ablate_everywhere):
        torch.testing.assert_close(run(prefill, LatentRows(points, {})), prefill.logits[points], rtol=0, atol=ATOL)
        assert run(prefill, LatentRows(points[:0], {})).shape == (0, prefill.backend.vocab_size)


# ------------------------------------------------------------------------------------------------------ how rows run


def sizes_of_replays(prefill: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    replay = prefill.kept.engine.replay

    def counted(prefix: Any, rows: Any, *args: Any) -> Any:
        sizes.append(len(rows))
        return replay(prefix, rows, *args)

    monkeypatch.setattr(prefill.kept.engine, "replay", counted)
    return sizes


@pytest.mark.parametrize("budget", [1, 2, 7, 10**6, None])
def test_replays_are_no_larger_than_the_budget_however_many_rows_there_are(
    budget: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill = backend().prefill(batch_of(RAGGED, "left"), [LOWER, UPPER])
    name = activation_name(LOWER)
    pairs = (prefill.latents[name] > 0).nonzero().repeat(3, 1)
    pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))]
    rows = LatentRows.single(name, pairs)
    sizes = sizes_of_replays(prefill, monkeypatch)
    monkeypatch.setattr(budgets, "MOST_ROWS", 50)
    found = ablate(prefill, rows, row_budget=budget)
    assert max(sizes) == min(len(rows), budget or 50)
    assert sum(sizes) == len(rows)
    torch.testing.assert_close(found, ablate(prefill, rows, naive=True), rtol=0, atol=ATOL)


def test_rows_without_effect_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    prefill = backend().prefill(batch_of(RAGGED, "left"), [LOWER, UPPER])
    name = activation_name(UPPER)
    latents = prefill.latents[name]
    inactive, active = (latents == 0).nonzero(), (latents > 0).nonzero()
    sizes, forwards = sizes_of_replays(prefill, monkeypatch), 0
    forward = prefill.backend.forward

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal forwards
        forwards += 1
        return forward(*args, **options)

    monkeypatch.setattr(prefill.backend, "forward", counted)
    for plain_loop in (False, True):
        clean = ablate(prefill, LatentRows.single(name, inactive), naive=plain_loop)
        assert torch.equal(clean, prefill.logits[inactive[:, 0]])
    unchanged = LatentRows.single(name, active, latents[tuple(active.T)])
    assert torch.equal(ablate(prefill, unchanged), prefill.logits[active[:, 0]])
    assert (sizes, forwards) == ([], 0)
    ablate(prefill, active_rows(prefill, name))
    assert (sum(sizes), forwards) == (len(active), 0)


@pytest.mark.parametrize("kind", ["llama", "cohere", "gemma2", "phi"])
def test_columns_are_taken_inside_of_the_models_head(kind: str) -> None:
    """Cohere scales logits, Gemma 2 bends them, and the unembedding of Phi has a bias."""
    model = make_model(kind)
    if kind == "phi":
        torch.nn.init.uniform_(model.lm_head.bias)
    prefill = backend_of(model).prefill(batch_of((6, 6), "left"), [LOWER, UPPER])
    rows, columns = active_rows(prefill, activation_name(LOWER)), torch.tensor([90, 3, 3, 17])
    narrow, wide = ablate(prefill, rows, columns), ablate(prefill, rows)
    torch.testing.assert_close(narrow, wide[:, columns], rtol=0, atol=ATOL)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "qwen3", "neox"])
def test_ablated_neurons_equal_forwards_without_them(kind: str) -> None:
    model, inputs, place = make_model(kind, torch.float64), batch_of((9, 9), "left"), "layers.1.mlp_act"
    each = backend_of(model)
    block = each.blocks[1][1]
    last = block.mlp.get_submodule({"gpt2": "c_proj", "neox": "dense_4h_to_h"}.get(kind, "down_proj"))
    width = each.capture(inputs, [place])[place].shape[-1]
    prefill = each.prefill(inputs, [FixedDictionary(place, width)])
    assert each.create_replay().depth(place) == each.create_replay().depth("blocks.1.mlp.hook_post") == 1.5
    (name,) = prefill.latents
    neurons = range(0, width, 5)
    pairs = [(point, neuron) for point in range(2) for neuron in neurons]
    signs = (prefill.latents[name][:, :width] > 0).tolist()
    latents = torch.tensor([neuron if signs[point][neuron] else width + neuron for point, neuron in pairs])
    rows = LatentRows.single(name, torch.stack([torch.tensor([point for point, _ in pairs]), latents], dim=1))

    def without(activations: torch.Tensor, neuron: int) -> torch.Tensor:
        edited = activations.clone()
        edited[:, -1, neuron] = 0
        return edited

    wanted = []
    for neuron in neurons:
        with last.register_forward_pre_hook(lambda _, args, neuron=neuron: without(args[0], neuron)), torch.no_grad():
            wanted.append(model(input_ids=inputs.tokens, use_cache=False).logits[:, -1])
    expected = torch.stack(wanted, dim=1).flatten(0, 1)
    assert (expected - prefill.logits[rows.points]).abs().amax() > 1e-3
    torch.testing.assert_close(ablate(prefill, rows), expected, rtol=0, atol=EAGER_ATOL)
