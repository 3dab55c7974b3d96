"""Gradients through replays equal those through whole forwards, and differences of whole forwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from interpretune.analysis import HuggingFaceBackend, LatentRows, Points, Prefill, ablate, activation_name
from interpretune.errors import AnalysisError
from interpretune.latents.splicing import Splice
from interpretune.replay.gradients import attribute, gradient_edges, integrated_gradients
from interpretune.system.model_lock import model_lock
from tests.replay.ablated_rows import ATOL, Row, rows_of
from tests.tiny_architectures import VOCABULARY, backend_of, batch_of, dictionary, make_model

STEP = 1e-4
"""Of central differences; their error is about its square."""
INPUTS = batch_of((9, 4, 12), "left")
WEIGHTS = torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
VARIANTS: dict[str, dict[str, bool]] = {
    "linear": {"skips": True},
    "decoded": {"linear": False},
    "linear with error": {"error": True},
    "decoded with error": {"linear": False, "error": True, "skips": True},
}
PLACES = {
    "blocks": ["blocks.1.hook_resid_post", "blocks.3.hook_resid_post"],
    "within a block, the highest first": ["blocks.2.hook_mlp_out", "blocks.2.attn.hook_z", "blocks.1.hook_mlp_out"],
}


@cache
def backend(kind: str = "llama") -> HuggingFaceBackend:
    return backend_of(make_model(kind), special=(7, 11))


def models_at(places: Sequence[str], **settings: Any) -> list[Any]:
    return [dictionary(place, i, d_sae=14, **settings) for i, place in enumerate(places)]


def weighted(logits: Tensor, points: Tensor) -> Tensor:
    """An objective that is another one for every point."""
    return (logits * WEIGHTS[points]).sum()


def differences(prefill: Prefill, rows_with: Callable[[float], LatentRows]) -> Tensor:
    """Slope of the objective in each row, by two whole forwards of GPT-2; Llama's norms are in float32 always."""
    up, down = (ablate(prefill, rows_with(step), naive=True) for step in (STEP, -STEP))
    return ((up - down) * WEIGHTS[rows_with(0.0).points]).sum(-1) / (2 * STEP)


# --------------------------------------------------------------------------------------------------------- attribution


CASES = [
    *(("llama", places, variant) for places in PLACES for variant in VARIANTS),
    *zip(("gpt2", "gpt2"), PLACES, ("linear", "decoded with error"), strict=True),
]


@pytest.mark.parametrize(("kind", "places", "variant"), CASES)
def test_attributions_equal_gradients_through_whole_forwards(kind: str, places: str, variant: str) -> None:
    models = models_at(PLACES[places], **VARIANTS[variant])
    names = [activation_name(item) for item in models]
    prefill = backend(kind).prefill(INPUTS, models)
    assert prefill.kept is not None
    _, everywhere = backend(kind).gradients(INPUTS, models, lambda logits: (logits * WEIGHTS[:3]).sum(), names)
    for wanted_names in (names, names[::-1], names[-1:]):
        for _ in range(2):
            found = attribute(prefill, weighted, wanted_names)
            assert list(found) == list(wanted_names)
            for name in wanted_names:
                wanted = everywhere[name][prefill.points.examples, prefill.points.positions]
                torch.testing.assert_close(found[name], wanted, rtol=0, atol=ATOL)
                assert wanted.abs().max() > 1e-2


@pytest.mark.parametrize("linear", [True, False])
def test_attributions_equal_differences_at_any_points(linear: bool) -> None:
    points = Points(torch.tensor([2, 0, 2, 1]), torch.tensor([3, 11, 11, 8]))  # the last is an example's first token
    lower, upper = models = [
        *models_at(["blocks.1.hook_resid_post"], skips=True, linear=linear),
        dictionary("blocks.3.hook_mlp_out", 5, d_sae=14),
    ]
    prefill = backend("gpt2").prefill(INPUTS, models, points)
    found = attribute(prefill, weighted, list(map(activation_name, models)))
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(14))
    for item in (lower, upper):
        name = activation_name(item)
        at = prefill.latents[name].flatten()
        wanted = differences(prefill, lambda step, name=name, at=at: LatentRows.single(name, pairs, at + step))
        torch.testing.assert_close(found[name], wanted.reshape(4, 14), rtol=0, atol=1e-6)
    assert not found[activation_name(lower)][3].any()
    assert found[activation_name(upper)][3].any()


def test_objectives_see_the_columns_that_they_ask_for() -> None:
    models = models_at(PLACES["blocks"])
    prefill, columns = backend().prefill(INPUTS, models), torch.tensor([50, 3])
    names = [activation_name(item) for item in models]

    def difference(logits: Tensor, _: Tensor) -> Tensor:
        return (logits[:, 0] - logits[:, 1]).sum()

    narrow = attribute(prefill, difference, names, columns)
    wide = attribute(prefill, lambda logits, points: difference(logits[:, columns], points), names)
    for name in names:
        torch.testing.assert_close(narrow[name], wide[name], rtol=0, atol=ATOL)


def test_gradients_leave_the_prefill_as_it_was() -> None:
    prefill = backend().prefill(INPUTS, models_at(PLACES["blocks"]))
    before = {name: latents.clone() for name, latents in prefill.latents.items()}
    attribute(prefill, weighted, list(before))
    integrated_gradients(prefill, weighted, list(before))
    for name, latents in prefill.latents.items():
        assert torch.equal(latents, before[name])
        assert not latents.requires_grad


def test_parameters_are_frozen_while_the_lock_of_the_model_is_held() -> None:
    prefill = backend().prefill(INPUTS, models_at(PLACES["blocks"]))
    (_, lock), found = model_lock(prefill.backend.model).locks[0], list[bool]()

    def take() -> None:
        found.append(lock.acquire(blocking=False))
        if found[-1]:
            lock.release()

    def objective(logits: Tensor, _: Tensor) -> Tensor:
        other = threading.Thread(target=take)
        other.start()
        other.join()
        return logits.sum()

    attribute(prefill, objective, list(prefill.latents))
    assert found == [False]


# ------------------------------------------------------------------------------------------------ integrated gradients


@pytest.mark.parametrize(("variant", "baseline"), [*zip(VARIANTS, (0.0, 0.2, 0.2, 0.0), strict=True)])
def test_integrated_gradients_equal_a_loop_over_steps(variant: str, baseline: float) -> None:
    models = models_at(PLACES["blocks"], **VARIANTS[variant])
    name, steps = activation_name(models[0]), 3
    prefill = backend("gpt2").prefill(INPUTS, models)
    latents = prefill.latents[name]
    where = [tuple(pair) for pair in (latents > 0).nonzero().tolist()]
    wanted = torch.zeros_like(latents)
    for k in range(1, steps + 1):
        on_line = torch.where(latents > 0, baseline + (k - 0.5) / steps * (latents - baseline), 0)

        def moved(step: float, on_line: Tensor = on_line) -> LatentRows:
            rows: list[Row] = []
            for point, latent in where:
                sets = dict(enumerate(on_line[point].tolist()))
                rows.append((point, {name: {**sets, latent: sets[latent] + step}}))
            return rows_of(rows)

        slopes = differences(prefill, moved)
        for (point, latent), slope in zip(where, slopes, strict=True):
            wanted[point, latent] += (latents[point, latent] - baseline) * slope / steps
    for budget in (1, 4, None):
        found = integrated_gradients(prefill, weighted, [name], steps=steps, baseline=baseline, row_budget=budget)
        torch.testing.assert_close(found[name], wanted, rtol=0, atol=1e-6)
    assert wanted.abs().max() > 1e-2


def test_integrated_gradients_add_up_to_the_effect_of_all_latents() -> None:
    models = models_at(PLACES["within a block, the highest first"], linear=False)
    names = [activation_name(item) for item in models]
    prefill = backend().prefill(INPUTS, models)
    found = integrated_gradients(prefill, weighted, names, steps=200)
    for name in names:
        without = rows_of([(point, {name: dict.fromkeys(range(14), 0.0)}) for point in range(3)])
        effects = ((prefill.logits - ablate(prefill, without, naive=True)) * WEIGHTS[:3]).sum(-1)
        torch.testing.assert_close(found[name].sum(-1), effects, rtol=2e-3, atol=0)
        assert effects.abs().min() > 0.05


def test_no_steps_are_refused() -> None:
    prefill = backend().prefill(INPUTS, models_at(PLACES["blocks"]))
    with pytest.raises(AnalysisError, match="over 0 steps"):
        integrated_gradients(prefill, weighted, list(prefill.latents), steps=0)


# --------------------------------------------------------------------------------------------------------------- edges


def edges_of_whole_forwards(prefill: Prefill, upstream: str, downstream: str) -> list[Tensor]:
    """Activation x gradient for all latents, ``[d_sae, d_sae]``: one backward for each active downstream latent."""
    seen: dict[str, Tensor] = {}

    def leaf(latents: Tensor) -> Tensor:
        seen["up"] = latents.detach().requires_grad_()
        return seen["up"]

    splices = [
        Splice(
            item,
            untouched=prefill.backend.untouched_by(item, prefill.inputs),
            edit=leaf if name == upstream else None,
            see_latents=(lambda latents: seen.update(down=latents)) if name == downstream else None,
        )
        for name, item in prefill.latent_models.items()
    ]
    with torch.enable_grad():
        prefill.backend.forward(prefill.inputs, prefill.backend.chain(splices))
    result = []
    for at in zip(prefill.points.examples.tolist(), prefill.points.positions.tolist(), strict=True):
        edges = torch.zeros(seen["up"].shape[-1], seen["down"].shape[-1], dtype=torch.float64)
        for latent in seen["down"][at].nonzero().flatten():
            (slopes,) = torch.autograd.grad(seen["down"][at][latent], seen["up"], retain_graph=True)
            edges[:, latent] = seen["up"][at] * slopes[at]
        result.append(edges.detach())
    return result


WITHIN = "within a block, the highest first"


@pytest.mark.parametrize(
    ("places", "up", "down", "variant"),
    [
        *(("blocks", 0, 1, variant) for variant in VARIANTS),
        *((WITHIN, 1, 0, variant) for variant in ("decoded", "linear with error")),
        *((WITHIN, 2, 1, variant) for variant in ("linear", "decoded with error")),
    ],
)
def test_edges_equal_one_backward_for_each_downstream_latent(places: str, up: int, down: int, variant: str) -> None:
    models = models_at(PLACES[places], **VARIANTS[variant])
    upstream, downstream = activation_name(models[up]), activation_name(models[down])
    points = Points(torch.tensor([0, 2, 2, 1]), torch.tensor([11, 5, 11, 8]))
    prefill = backend().prefill(INPUTS, models, points)
    wanted = edges_of_whole_forwards(prefill, upstream, downstream)
    for budget in (1, 5, None):
        found = gradient_edges(prefill, upstream, downstream, budget)
        assert len(found) == len(points)
        for point, (edge, dense) in enumerate(zip(found, wanted, strict=True)):
            assert edge.upstream.tolist() == (prefill.latents[upstream][point] > 0).nonzero().flatten().tolist()
            assert edge.downstream.tolist() == (prefill.latents[downstream][point] > 0).nonzero().flatten().tolist()
            torch.testing.assert_close(edge.values, dense[edge.upstream][:, edge.downstream], rtol=0, atol=ATOL)
    assert max(dense.abs().max() for dense in wanted) > 1e-2


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize(
    ("kind", "reads"),
    [("neox", "blocks.1.hook_mlp_out"), ("llama", "blocks.1.hook_resid_pre")],
)
def test_edges_to_what_reads_beside_or_below_are_zero(kind: str, reads: str, linear: bool) -> None:
    """GPT-NeoX's MLP does not read what its attention writes; a transcoder may read below and write above."""
    models = [
        dictionary("blocks.1.hook_attn_out", 1, d_sae=14, linear=linear),
        dictionary(reads, 2, d_sae=14, output="blocks.1.hook_mlp_out", linear=linear),
    ]
    prefill = backend(kind).prefill(INPUTS, models)
    first, second = prefill.kept.entries  # type: ignore[union-attr]
    for edge in gradient_edges(prefill, first, second):
        assert edge.values.shape == (len(edge.upstream), len(edge.downstream))
        assert not edge.values.any()


def test_edges_from_nothing_active_are_empty() -> None:
    models = models_at(PLACES["blocks"])
    models[1].b_enc.data.fill_(-100)
    prefill = backend().prefill(INPUTS, models)
    for edge in gradient_edges(prefill, *map(activation_name, models)):
        assert edge.values.shape == (len(edge.upstream), 0)


def test_edges_in_the_wrong_order_or_to_unknown_latent_models_are_refused() -> None:
    lower, upper = models = models_at(PLACES["blocks"])
    prefill = backend().prefill(INPUTS, models)
    low, high = activation_name(lower), activation_name(upper)
    for upstream, downstream in ((high, low), (low, low), (low, "blocks.2.hook_mlp_out.hook_sae_acts_post")):
        with pytest.raises(AnalysisError, match=f"No edges from {upstream} to {downstream}: .* {low}, {high}"):
            gradient_edges(prefill, upstream, downstream)
