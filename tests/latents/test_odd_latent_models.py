"""Latent models that reuse their buffers, whose output somebody overwrites, or that read above where they write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import interpretune as it
from interpretune.analysis import AnalysisCfg, AnalysisMode, HuggingFaceBackend, ModelInputs, ablate, run_analysis
from interpretune.latents.splicing import Splice
from interpretune.replay.gradients import attribute, integrated_gradients
from tests.replay.ablated_rows import ATOL, active_rows, error_of
from tests.sessions import STACKS, make_session
from tests.tiny_architectures import backend_of, batch_of, dictionary, make_model
from tests.tiny_latents import RandomDictionary, activations_of

INPUTS = batch_of((9, 4, 12), "left")


class ReusesBuffers(RandomDictionary):
    """Writes what it returns into the same memory each time, as code that spares allocations does."""

    def into(self, name: str, values: Tensor) -> Tensor:
        if values.requires_grad:
            return values
        kept: dict[Any, Tensor] = self.__dict__.setdefault("buffers", {})
        buffer = kept.setdefault((name, values.shape[-1]), torch.empty(0, dtype=values.dtype))
        if buffer.numel() < values.numel():
            buffer = kept[name, values.shape[-1]] = torch.empty(4 * values.numel(), dtype=values.dtype)
        taken = buffer[: values.numel()].view(values.shape)
        return taken.copy_(values)

    def encode(self, activations: Tensor) -> Tensor:
        return self.into("encode", super().encode(activations))

    def decode(self, latents: Tensor) -> Tensor:
        return self.into("decode", super().decode(latents))


class ReusesBuffersLinearly(ReusesBuffers):
    """Says that its decoder is linear."""

    def decoder_rows(self, latents: Tensor) -> Tensor:
        return self.w_dec[latents]


def made(kind: type[RandomDictionary], hook_point: str, seed: int, *, error: bool, **settings: Any) -> RandomDictionary:
    item = kind(hook_point, 32, 24, seed=seed, **settings).double()
    item.use_error_term = error
    return item


def backend() -> HuggingFaceBackend:
    return backend_of(make_model("llama"))


@pytest.mark.parametrize("error", [False, True])
@pytest.mark.parametrize("kind", [ReusesBuffers, ReusesBuffersLinearly])
def test_reused_buffers_give_the_numbers_of_fresh_ones(kind: type[RandomDictionary], error: bool) -> None:
    plain = RandomDictionary if kind is ReusesBuffers else None
    places = (("blocks.1.hook_resid_post", 1), ("blocks.2.hook_mlp_out", 2))
    reusing = [made(kind, *place, error=error) for place in places]
    fresh = [
        made(plain, *place, error=error) if plain else dictionary(*place, error=error) for place in places
    ]  # fmt: skip
    names = [activations_of(item) for item in fresh]
    found = [everything(models, names) for models in (reusing, fresh)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=ATOL)


def everything(models: Sequence[RandomDictionary], names: Sequence[str]) -> list[Tensor]:
    """What two batches give, the first kept while the second runs."""
    own = backend()
    runs = [own.run_spliced(batch_of(lengths, "left"), models, record=names) for lengths in ((9, 4, 12), (7, 12, 5))]
    prefill = own.prefill(INPUTS, models)
    other = own.prefill(batch_of((7, 12, 5), "left"), models)
    assert prefill.kept is not None
    assert other.kept is not None
    seen = [value.detach().clone() for run in runs for value in (run.answer_logits, *run.activations.values())]
    seen += [prefill.logits, *prefill.latents.values()]
    seen += [ablate(prefill, active_rows(prefill, name), naive=naive) for name in names for naive in (False, True)]
    gradients = attribute(prefill, lambda logits, _: logits[:, 5].sum(), names)
    integrated = integrated_gradients(prefill, lambda logits, _: logits[:, 5].sum(), names, steps=2)
    return [*seen, *gradients.values(), *integrated.values()]


@pytest.mark.parametrize("grad", [False, True])
def test_latents_that_an_edit_overwrites_are_edited(grad: bool) -> None:
    """An edit may write into what it is given: the error term is that of the latents before, and gradients flow."""
    for error in (False, True):
        item = made(RandomDictionary, "blocks.1.hook_resid_post", 1, error=error)
        name = activations_of(item)

        def in_place(latents: Tensor) -> Tensor:
            latents[:, -1] = latents[:, -1] * 0.0
            return latents

        def afresh(latents: Tensor) -> Tensor:
            kept = torch.ones(latents.shape[1], 1, dtype=latents.dtype)
            kept[-1] = 0
            return latents * kept

        logits = []
        for edit in (in_place, afresh):
            with torch.set_grad_enabled(grad):
                found = backend().run_spliced(INPUTS, [item], {name: edit}).answer_logits
            if grad:
                found.sum().backward()
            logits.append(found.detach())
        torch.testing.assert_close(*logits, rtol=0, atol=ATOL)
        clean = backend().run_spliced(INPUTS, [item]).answer_logits
        assert (logits[0] - clean).abs().max() > 0.1


def test_gradients_do_not_flow_through_the_error_term() -> None:
    item = made(RandomDictionary, "blocks.1.hook_resid_post", 1, error=True)
    splicing = Splice(item, edit=lambda latents: 2 * latents).begin()
    ((_, read),), ((_, write),) = splicing.reads, splicing.writes
    write(read(torch.rand(2, 3, 32).double())).sum().backward()
    assert item.b_dec.grad is not None
    assert item.b_dec.grad.tolist() == [2.0 * 3] * 32


class WritesAConstant(RandomDictionary):
    """What it writes is one vector, expanded: nobody can write into it."""

    def decode(self, latents: Tensor) -> Tensor:
        return self.b_dec.detach().expand(*latents.shape[:-1], -1)


class WritesInPlace(torch.nn.Module):
    """A block that writes into the residual stream that it is given."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        return hidden_states.copy_(self.block(hidden_states.clone(), **options))


def test_a_model_that_writes_into_a_latent_model_s_output() -> None:
    item = made(WritesAConstant, "blocks.1.hook_resid_post", 1, error=False)
    constant = item.b_dec.detach().clone()
    wanted = backend().run_spliced(INPUTS, [item]).answer_logits
    model = make_model("llama")
    model.model.layers[2] = WritesInPlace(model.model.layers[2])
    with torch.no_grad():
        found = backend_of(model).run_spliced(INPUTS, [item]).answer_logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=ATOL)
    assert torch.equal(item.b_dec, constant)


OVERWRITTEN: dict[str, Callable[[], list[RandomDictionary]]] = {
    "by a transcoder around it": lambda: [
        dictionary("blocks.1.hook_mlp_out", 1),
        dictionary("blocks.1.hook_resid_pre", 2, output="blocks.1.hook_resid_post"),
    ],
    "by a constant above": lambda: [
        dictionary("blocks.1.hook_mlp_out", 1),
        made(WritesAConstant, "blocks.2.hook_resid_post", 2, error=False),
    ],
}


@pytest.mark.parametrize("case", OVERWRITTEN)
def test_what_is_overwritten_has_no_effect(case: str) -> None:
    items = OVERWRITTEN[case]()
    name, other = map(activations_of, items)
    own = backend()
    prefill = own.prefill(INPUTS, items)
    assert prefill.kept is not None
    rows = active_rows(prefill, name)
    if "constant" not in case:
        assert error_of(prefill, active_rows(prefill, other)) < ATOL
    torch.testing.assert_close(ablate(prefill, rows), prefill.logits[rows.points], rtol=0, atol=ATOL)
    for found in (
        attribute(prefill, lambda logits, _: logits[:, 5].sum(), [name, other]),
        attribute(prefill, lambda logits, _: logits[:, 5].sum(), [name]),
        integrated_gradients(prefill, lambda logits, _: logits[:, 5].sum(), [name], steps=2),
        own.gradients(INPUTS, items, lambda logits: logits[:, 5].sum(), [name, other])[1],
        own.gradients(INPUTS, items, lambda logits: logits[:, 5].sum(), [name])[1],
    ):
        assert found[name].shape[-1] == 24
        assert not found[name].any()
        assert "constant" in case or other not in found or found[other].any()


BACKWARDS = [
    ("blocks.2.hook_resid_pre", "blocks.1.hook_mlp_out"),
    ("blocks.1.hook_mlp_out", "blocks.1.hook_attn_out"),
    ("model.layers.2.mlp:in", "model.layers.1.mlp:out"),
]


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("error", [False, True])
@pytest.mark.parametrize(("reads", "writes"), BACKWARDS)
def test_a_latent_model_that_reads_above_where_it_writes(reads: str, writes: str, error: bool, linear: bool) -> None:
    item = dictionary(reads, 1, output=writes, error=error, linear=linear)
    own = backend()
    inputs = ModelInputs(INPUTS.tokens, torch.ones_like(INPUTS.attention_mask))
    words = f"reads at {reads}.*after {writes}"
    with pytest.raises(it.HookPointError, match=words):
        own.check_latent_models([item])
    edit = {activations_of(item): lambda latents: latents * 0}
    with pytest.raises(it.HookPointError, match=words):
        own.run_spliced(inputs, [item], edit)
    with pytest.raises(it.HookPointError, match=words):
        own.prefill(inputs, [item])


@pytest.mark.parametrize("stack", STACKS)
def test_sessions_refuse_a_transcoder_that_reads_too_high(tmp_path: Any, stack: str) -> None:
    item = RandomDictionary("blocks.2.hook_resid_pre", output="blocks.1.hook_mlp_out")
    with pytest.raises(it.HookPointError, match="reads at blocks.2.hook_resid_pre.*after blocks.1.hook_mlp_out"):
        make_session(tmp_path, "llama", stack, latent_models=[item])


def test_analyses_of_a_session_with_reused_buffers(tmp_path: Any) -> None:
    caches = []
    for kind in (ReusesBuffers, RandomDictionary):
        session = make_session(tmp_path, "llama", latent_models=[kind("blocks.1.hook_resid_post", seed=1)])
        caches.append([])
        for mode in (AnalysisMode.clean_w_sae, AnalysisMode.attr_patching):
            cfg = AnalysisCfg(mode=mode)
            run_analysis(session.module, session.datamodule, cfg)
            caches[-1].append(cfg.analysis_cache)
    for one, other in zip(*caches, strict=True):
        for a, b in zip(one.batches, other.batches, strict=True):
            torch.testing.assert_close(a.logit_diffs, b.logit_diffs, rtol=0, atol=1e-4)
            for name, values in (a.activations or {}).items():
                torch.testing.assert_close(values.values, b.activations[name].values, rtol=0, atol=1e-4)
