"""Weights laid out for replays of hooked transformers: the same numbers, and nothing of them is left on the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import einops
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from transformer_lens import HookedTransformer
from transformers import AutoTokenizer

from interpretune.analysis import ablate
from interpretune_tlens import ITLensFromPretrainedNoProcessingConfig, loading, replay as tlens_replay
from interpretune_tlens.backend import TransformerLensBackend
from interpretune_tlens.hooked import laid_out
from interpretune_tlens.hooked.laid_out import LaidOutWeights
from tests.replay.ablated_rows import ATOL, active_rows, worst_error
from tests.tiny_architectures import batch_of, dictionary, make_model

PLACES = ("blocks.1.hook_resid_post", "blocks.3.hook_mlp_out")
LOW = f"{PLACES[0]}.hook_sae_acts_post"
GATED = ("llama", "mistral", "qwen3")
GB = 2**30
Make = Callable[[str], TransformerLensBackend]


@pytest.fixture
def make(llama_folder: Path) -> Make:
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)

    def make(kind: str) -> TransformerLensBackend:
        model = make_model(kind, torch.float64)
        model.config.architectures = [type(model).__name__]
        cfg = ITLensFromPretrainedNoProcessingConfig(use_bridge=False)
        hooked = loading.convert(model, tokenizer, cfg, torch.device("cpu")).eval()
        return TransformerLensBackend(hooked.requires_grad_(False))  # as sessions have it that train nothing

    return make


def prefilled(backend: TransformerLensBackend) -> Any:
    models = [dictionary(place, i) for i, place in enumerate(PLACES)]
    return backend.prefill(batch_of((9, 4, 12), "left"), models, self_check=False)


def layers_of(backend: TransformerLensBackend) -> list[Any]:
    return list(backend.model.blocks)  # type: ignore[arg-type]


def attributes(backend: TransformerLensBackend) -> list[set[str]]:
    return [set(module.__dict__) for module in backend.model.modules()]


def copies(block: Any) -> dict[str, bool]:
    """Whether the model's way of reading a weight copies it."""
    views = {name: getattr(block.mlp, name).T.contiguous() for name in ("W_gate", "W_in", "W_out")}
    views = {name: (getattr(block.mlp, name), view) for name, view in views.items()}
    grouped = hasattr(block.attn, "_W_K")
    for name in ("W_Q", "_W_K" if grouped else "W_K", "_W_V" if grouped else "W_V"):
        weight = getattr(block.attn, name)
        views[name] = weight, einops.rearrange(weight, "h m d -> (h d) m")
    weight = block.attn.W_O
    views["W_O"] = weight, einops.rearrange(weight, "h d m -> m (h d)").contiguous()
    return {name: weight.data_ptr() != view.data_ptr() for name, (weight, view) in views.items()}


@contextmanager
def seen_in_mlps(backend: TransformerLensBackend, see: Callable[[int], None]) -> Iterator[None]:
    handles = [
        block.mlp.register_forward_pre_hook(lambda *_, index=index: see(index))
        for index, block in enumerate(layers_of(backend))
    ]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("kind", GATED)
def test_replays_copy_no_weights_of_the_blocks_that_they_run_and_a_prefill_lays_none_out(make: Make, kind: str) -> None:
    backend = make(kind)
    found: list[tuple[int, bool, bool]] = []

    def see(index: int) -> None:
        read = copies(layers_of(backend)[index])
        found.append((index, any(read.values()), all(read.values())))

    prefilled(backend)  # makes the engine, which runs the model too
    with seen_in_mlps(backend, see):
        prefill = prefilled(backend)
        rows = active_rows(prefill, LOW)
        in_prefill, found[:] = found[:], []
        assert not vars(prefill.kept.ready).keys() & {"_weights"}
        ablate(prefill, rows)
    assert all(every for *_, every in in_prefill)
    assert {index for index, *_ in found} == set(range(2, len(layers_of(backend))))
    assert not any(some for _, some, _ in found)
    assert worst_error(prefill) < ATOL


@pytest.mark.parametrize("kind", [*GATED, "gpt2", "neox"])
def test_logits_are_the_same_to_the_bit_as_with_the_parameters(
    make: Make, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make(kind)
    prefill = prefilled(backend)
    rows = active_rows(prefill, LOW)
    fast = ablate(prefill, rows)
    monkeypatch.setattr(laid_out, "free_bytes", lambda _: 0)
    plain = prefilled(backend)
    assert torch.equal(plain.logits, prefill.logits)
    assert torch.equal(ablate(plain, rows), fast)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_nothing_is_left_on_the_model_also_after_an_error(make: Make, kind: str) -> None:
    backend = make(kind)
    prefilled(backend)
    before, state = attributes(backend), {name: value.clone() for name, value in backend.model.state_dict().items()}
    parameters = dict(backend.model.named_parameters())
    prefill = prefilled(backend)
    rows = active_rows(prefill, LOW)
    ablate(prefill, rows)
    assert attributes(backend) == before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tlens_replay, "attend", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ablate(prefill, rows)
    assert attributes(backend) == before
    now = dict(backend.model.named_parameters())
    assert now.keys() == parameters.keys()
    assert all(now[name] is parameters[name] for name in parameters)
    assert backend.model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in backend.model.state_dict().items())


def test_within_the_context_state_dict_and_parameters_are_the_models_own(make: Make) -> None:
    model: Any = make("llama").model
    mlp = model.blocks[0].mlp
    weight, names = mlp.W_in, list(model.state_dict())
    with torch.no_grad(), LaidOutWeights(list(model.blocks))():
        assert mlp.W_in is not weight
        assert torch.equal(mlp.W_in, weight)
        assert list(model.state_dict()) == names
        assert model.state_dict()["blocks.0.mlp.W_in"].data_ptr() == weight.data_ptr()
        assert any(parameter is weight for parameter in model.parameters())
    assert mlp.W_in is weight


def optimizer_step(model: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model.requires_grad_(True)
    model(torch.tensor([[3, 4, 5]])).pow(2).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    model.requires_grad_(False)


def loaded_state(model: Any) -> None:
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})


def new_parameter(model: Any) -> None:
    for block in model.blocks:
        block.mlp.W_in = nn.Parameter(block.mlp.W_in.detach() * 2)


def new_data(model: Any) -> None:
    for block in model.blocks:
        block.mlp.W_in.data = block.mlp.W_in.data * 2


def used_once(model: Any) -> LaidOutWeights:
    ready = LaidOutWeights(list(model.blocks))
    with torch.no_grad(), ready():
        assert model.blocks[0].mlp.W_in is not model.blocks[0].mlp._parameters["W_in"]
    return ready


CHANGES = (optimizer_step, loaded_state, new_parameter, new_data)


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_change_between_prefills_are_seen(make: Make, change: Callable[[Any], None]) -> None:
    backend = make("llama")
    first = prefilled(backend)
    before = ablate(first, active_rows(first, LOW))
    change(backend.model)
    second = prefilled(backend)
    assert not torch.equal(ablate(second, active_rows(first, LOW)), before)
    assert worst_error(second) < ATOL


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_change_while_a_prefill_is_kept_are_used_themselves(
    make: Make, change: Callable[[Any], None]
) -> None:
    model: Any = make("llama").model
    ready = used_once(model)
    change(model)
    with torch.no_grad(), ready():
        assert all(block.mlp.W_in is block.mlp._parameters["W_in"] for block in model.blocks)


def test_models_that_come_back_from_another_dtype_are_used_themselves(make: Make) -> None:
    model: Any = make("llama").model
    ready = used_once(model)
    model.to(torch.bfloat16)
    with torch.no_grad(), ready():
        assert model.blocks[0].mlp.W_in.dtype == torch.bfloat16
    model.to(torch.float64)
    with torch.no_grad(), ready():
        assert model.blocks[0].mlp.W_in is model.blocks[0].mlp._parameters["W_in"]


def test_gradients_of_parameters_reach_them(make: Make) -> None:
    model: HookedTransformer = make("llama").model  # type: ignore[assignment]
    model.requires_grad_(True)
    with LaidOutWeights(list(model.blocks))():  # gradients are on
        model(torch.tensor([[3, 4, 5]])).sum().backward()
    assert all(parameter.grad is not None for block in model.blocks for parameter in block.parameters())


def test_contexts_within_contexts_and_attributes_of_others_stay(make: Make) -> None:
    model: Any = make("llama").model
    mlp, other = model.blocks[0].mlp, torch.zeros(1)
    model.blocks[1].mlp.__dict__["W_in"] = other
    ready = LaidOutWeights(list(model.blocks))
    with torch.no_grad(), ready():
        with ready():
            assert not mlp.W_in.is_contiguous()
        assert not mlp.W_in.is_contiguous()
        assert model.blocks[1].mlp.W_in is other
    assert mlp.W_in is mlp._parameters["W_in"]
    assert model.blocks[1].mlp.W_in is other


@pytest.mark.parametrize(("free", "expected"), [(64 * GB, True), (0, False)])
def test_weights_are_laid_out_where_they_fit_into_a_share_of_the_free_memory(
    make: Make, monkeypatch: pytest.MonkeyPatch, free: int, expected: bool
) -> None:
    model: Any = make("llama").model
    monkeypatch.setattr(laid_out, "free_bytes", lambda _: free)
    with torch.no_grad(), LaidOutWeights(list(model.blocks))():
        assert ("W_in" in model.blocks[0].mlp.__dict__) is expected


def test_the_memory_asked_for_is_that_of_the_weights(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    block: Any = make("llama").model.blocks[0]  # type: ignore[index]
    weights = [w for part in (block.mlp, block.attn) for n, w in part.named_parameters(recurse=False) if "W_" in n]
    size = sum(weight.nbytes for weight in weights)
    for free, fits in ((4 * size, True), (4 * size - 4, False)):
        monkeypatch.setattr(laid_out, "free_bytes", lambda _, free=free: free)
        with torch.no_grad(), LaidOutWeights([block])():
            assert ("W_in" in block.mlp.__dict__) is fits


def test_weights_that_are_no_plain_parameters_are_left_alone(make: Make) -> None:
    model: Any = make("llama").model
    quantized, wrapped, subclassed = (block.mlp for block in list(model.blocks)[:3])
    quantized.W_in = nn.Parameter(quantized.W_in.detach().to(torch.uint8), requires_grad=False)
    parametrize.register_parametrization(wrapped, "W_in", nn.Identity())

    class OwnParameter(nn.Parameter):
        pass

    subclassed.W_in = OwnParameter(subclassed.W_in.detach())
    before = [set(module.__dict__) for module in (quantized, wrapped, subclassed)]
    with torch.no_grad(), LaidOutWeights(list(model.blocks)[:3])():
        added = [set(m.__dict__) - old for m, old in zip((quantized, wrapped, subclassed), before, strict=True)]
    assert added == [{"W_gate", "W_out"}, set(), {"W_gate", "W_out"}]
