"""4-bit weights are replayed like any others; 8-bit weights are refused: whole forwards disagree among themselves.

In the tiny models here the largest logit is about 5 and the largest effect above 2: replays with 4-bit weights are off
by less than 1e-5 in float32 and by 0.1 in bfloat16, as without quantization. With 8-bit weights the same row alone and
among others differs by 0.2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

import interpretune as it
from interpretune.analysis import HuggingFaceBackend, Prefill, ablate
from interpretune.models.quantization import keep_weights_in_place
from interpretune.replay.gradients import attribute, gradient_edges
from tests.replay.ablated_rows import Row, active_rows, reference, rows_of
from tests.tiny_architectures import backend_of, batch_of, dictionary, make_model

pytest.importorskip("bitsandbytes")

PLACES = ("blocks.1.hook_resid_post", "blocks.2.hook_mlp_out")
LOW, HIGH = (f"{place}.hook_sae_acts_post" for place in PLACES)
INPUTS = batch_of((9, 4, 12), "left")
COLUMNS = torch.tensor([3, 4])
FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
EIGHT_BITS = {"load_in_8bit": True}
Load = Callable[..., Any]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    @cache
    def folder(kind: str) -> str:
        path = tmp_path_factory.mktemp(kind)
        make_model(kind, torch.float32).save_pretrained(path)
        return str(path)

    def load(kind: str, quantization: dict[str, Any], dtype: str = "float32") -> Any:
        cfg = it.HFFromPretrainedConfig(quantization=quantization, pretrained_kwargs={"dtype": dtype})
        return it.load_hf_model(it.ITConfig(model_name_or_path=folder(kind), device="cpu", hf_from_pretrained_cfg=cfg))

    return load


def models(dtype: torch.dtype = torch.float32) -> list[Any]:
    return [dictionary(place, i).to(dtype) for i, place in enumerate(PLACES)]


def every_active_latent(prefill: Prefill) -> list[Row]:
    return [(p, {name: {i: 0.0}}) for name in (LOW, HIGH) for p, i in (prefill.latents[name] > 0).nonzero().tolist()]


def effects_of(logits: torch.Tensor, prefill: Prefill, rows: list[Row]) -> torch.Tensor:
    return (logits - prefill.logits[rows_of(rows).points]).abs().amax(-1)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("llama", "float32"), ("gpt2", "float16"), ("llama", "bfloat16"), ("gpt2", "float32")]
)
def test_four_bits_are_replayed_within_the_tolerance_of_the_self_check(load: Load, kind: str, dtype: str) -> None:
    backend = backend_of(load(kind, FOUR_BITS, dtype))
    assert torch.uint8 in {parameter.dtype for parameter in backend.model.parameters()}
    prefill = backend.prefill(INPUTS, models(getattr(torch, dtype)))
    assert prefill.kept is not None
    (check,) = backend.replays.checks()
    share = {"float32": 2e-4, "float16": 1e-2, "bfloat16": 5e-2}[dtype]
    assert check.passed
    rows = every_active_latent(prefill)  # those of the self-check are among them
    naive = ablate(prefill, rows_of(rows), naive=True)
    assert check.tolerance <= 1.1 * share * naive.abs().max()
    assert (ablate(prefill, rows_of(rows)) - naive).abs().max() <= check.tolerance
    assert effects_of(naive, prefill, rows).max() > 5 * check.tolerance


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_replays_of_four_bits_give_what_single_unpadded_forwards_give(load: Load, kind: str) -> None:
    backend = backend_of(load(kind, FOUR_BITS))
    prefill = backend.prefill(INPUTS, models())
    rows = every_active_latent(prefill)[::3]
    wanted = reference(backend.model, INPUTS, models(), prefill.points, rows)
    torch.testing.assert_close(ablate(prefill, rows_of(rows)), wanted, rtol=0, atol=5e-5)
    assert effects_of(wanted, prefill, rows).max() > 1


@pytest.mark.parametrize(("kind", "threshold"), [("llama", 0.0), ("gpt2", 6.0)])
def test_eight_bits_take_the_plain_loop_with_one_warning_that_says_why(load: Load, kind: str, threshold: float) -> None:
    backend = backend_of(load(kind, {**EIGHT_BITS, "llm_int8_threshold": threshold}))
    with pytest.warns(UserWarning, match="has 8-bit weights: .* effects have noise .* 4-bit weights") as seen:
        prefill = backend.prefill(INPUTS, models())
    assert len(seen) == 1
    assert "a whole forward for each row instead" in str(seen[0].message)
    assert prefill.kept is None
    assert backend.prefill(INPUTS, models()[:1]).kept is None  # a second warning would be an error
    rows = every_active_latent(prefill)[::3]
    found = ablate(prefill, rows_of(rows))
    wanted = reference(backend.model, INPUTS, models(), prefill.points, rows)
    atol = 1e-3 if threshold == 0 else 0.4
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)
    assert effects_of(wanted, prefill, rows).max() > 4 * atol


def test_what_eight_bits_give_depends_on_the_batch(load: Load) -> None:
    """The reason for the refusal: if this failed, 8-bit weights could be replayed."""
    backend = backend_of(load("llama", EIGHT_BITS))
    with pytest.warns(UserWarning, match="has 8-bit weights"):
        prefill = backend.prefill(INPUTS, models())
    rows = active_rows(prefill, LOW)
    together, alone = (ablate(prefill, rows, row_budget=budget) for budget in (None, 1))
    assert (together - alone).abs().max() > 0.05


def test_gradients_through_four_bits_are_right_however_the_model_was_loaded(load: Load) -> None:
    """On some CPUs bitsandbytes repacks 4-bit weights in the first forward and loses all gradients from then on."""
    ours = load("llama", FOUR_BITS)
    theirs = load("llama", FOUR_BITS)
    for module in theirs.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True  # as transformers hands it out on such a CPU
    found = []
    for model in (ours, theirs):
        prefill = backend_of(model).prefill(INPUTS, models())
        slopes = attribute(prefill, lambda logits, _: logits.diff(dim=-1).sum(), [LOW, HIGH], COLUMNS)
        whole = prefill.backend.gradients(
            INPUTS, models(), lambda logits: logits[:, COLUMNS].diff(dim=-1).sum(), [LOW, HIGH]
        )[1]
        for name, slope in slopes.items():
            torch.testing.assert_close(slope, INPUTS.answers.of(whole[name]), rtol=0, atol=1e-5)
        edges = [edge.values.flatten() for edge in gradient_edges(prefill, LOW, HIGH)]
        found.append(torch.cat([*map(torch.flatten, slopes.values()), *edges]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
    assert found[0].abs().max() > 1e-1


def test_weights_that_were_repacked_before_are_named(load: Load) -> None:
    model = load("llama", FOUR_BITS)
    layer = model.model.layers[1].mlp.up_proj
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.warns(
        UserWarning, match=r"repacked the 4-bit weights of 1 layers \(model.layers.1.mlp.up_proj"
    ) as seen:
        HuggingFaceBackend(model)
    assert len(seen) == 1
    layer.weight.quant_state.packing_format_for_cpu = False
    keep_weights_in_place(model)
