"""Models that accelerate has placed give what they give in one piece; what cannot be done with them is said."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from accelerate import cpu_offload, dispatch_model

import interpretune as it
from interpretune.activations.finite import likely_cause
from interpretune.analysis import (
    Add,
    AnalysisRunner,
    HuggingFaceBackend,
    ModelInputs,
    generate_with_interventions,
    run_with_interventions,
)
from interpretune.system.model_lock import model_lock
from interpretune.system.placement import is_offloaded
from interpretune.testing.tiny_models import tiny_llama, tiny_tokenizer
from interpretune.training.checkpoint import CheckpointIdentity
from tests.placed_models import PLACEMENTS, device_map
from tests.pretended_devices import AWAY, HOME, pretended_devices
from tests.questions.plain_loops import Coder
from tests.sessions import make_session, plain_model, unpadded_rows
from tests.tiny import saved_tiny_model
from tests.tiny_architectures import WIDTH, backend_of, batch_of, make_model
from tests.tiny_latents import RandomDictionary

ROWS = [
    it.PromptRow("Ada sees Bo and Cleo near", (" Kit", " Lena"), 0),
    it.PromptRow("who was", (" Kit", " Lena"), 1),
    it.PromptRow("June with Kit <eos> has", (" Kit and", " Lena"), 1),
]
CODERS = [
    Coder("low", "layers.0.resid_post", "layers.0.resid_post", torch.float64, True, False),
    Coder("high", "layers.2.mlp_in", "layers.2.mlp_out", torch.float64, False, True),
]
UNITS = [it.Heads(1), it.Neurons(2, only=range(8)), it.Vector("layers.0.mlp_out"), *CODERS]
VECTOR = torch.linspace(-1, 1, WIDTH, dtype=torch.float64)


def effects_of(model: Any, side: str, **asked: Any) -> pd.Series:
    asked = {"units": UNITS, "batch_size": 2, **asked}
    return it.effects(model, tiny_tokenizer(side), ROWS, **asked).to_pandas().effect


def steered(model: Any, side: str) -> pd.Series:
    """Logits of the answer, steered at one block, with dictionaries, and tokens that follow."""
    backend, whole = backend_of(model), batch_of((9, 4, 12), side)
    inputs = ModelInputs(*(item.to(backend.model_device) for item in (whole.tokens, whole.attention_mask)))
    items = [Add(at="layers.1.resid_post", value=VECTOR, scale=3.0)]
    with torch.no_grad():
        logits = run_with_interventions(backend, inputs, items, CODERS)

    def generate(batch: Any, **options: Any) -> Any:
        return model.generate(**batch, return_dict_in_generate=True, **options)

    batch = {"input_ids": inputs.tokens, "attention_mask": inputs.attention_mask}
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found = generate_with_interventions(backend, generate, batch, items, CODERS, **options)
    return pd.Series([*logits.flatten().tolist(), *found.sequences.flatten().tolist()])


ASKED: dict[str, Callable[[Any, str], pd.Series]] = {
    "ablation": effects_of,
    "gradient": lambda model, side: effects_of(model, side, method="gradient", positions="each"),
    "on units": lambda model, side: (
        it.effects_on(model, tiny_tokenizer(side), ROWS[:2], units=CODERS[0], on=[CODERS[1], it.Heads(3)])
        .to_pandas()
        .effect
    ),
    "direct": lambda model, side: (
        it.direct_logit_attribution(model, tiny_tokenizer(side), ROWS[:2], units=[it.Heads(1), it.Neurons(2)])
        .to_pandas()
        .effect
    ),
    "lens": lambda model, side: it.logit_lens(model, tiny_tokenizer(side), ROWS[:2]).to_pandas().objective,
    "steering": steered,
}


PLACES = {"llama": ("disk", "right"), "gpt2": ("memory", "left")}
"""Where the weights of a model are, and on which side it pads."""
CASES = [("llama", asked) for asked in ASKED] + [("gpt2", asked) for asked in ("ablation", "steering")]


@pytest.fixture(scope="module")
def placed_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Made once, so that what one call leaves behind is found by the next."""
    return cache(lambda kind: PLACEMENTS[PLACES[kind][0]](make_model(kind), tmp_path_factory.mktemp("weights")))


@pytest.mark.parametrize(("kind", "asked"), CASES)
def test_the_numbers_are_those_of_a_model_in_one_piece(
    placed_model: Callable[[str], Any], kind: str, asked: str
) -> None:
    placed, side = placed_model(kind), PLACES[kind][1]
    flags = [parameter.requires_grad for parameter in placed.parameters()]
    expected, found = (ASKED[asked](model, side).to_numpy() for model in (make_model(kind), placed))
    assert len(found)
    assert abs(found - expected).max() < 1e-10
    assert abs(expected).max() > 1e-3
    assert is_offloaded(placed)
    assert [parameter.requires_grad for parameter in placed.parameters()] == flags


FEW: dict[str, Callable[[Any, str], pd.Series]] = {
    "ablation": lambda model, side: effects_of(model, side, units=[it.Heads(1), CODERS[1]], batch_size=3),
    "gradient": lambda model, side: effects_of(model, side, units=CODERS, batch_size=3, method="gradient"),
    "direct": ASKED["direct"],
    "steering": steered,
}
"""Each operation is a call of Python on devices that are pretended."""


@pytest.mark.parametrize("asked", FEW)
def test_blocks_on_two_devices_give_what_they_give_on_one(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No operation gets tensors of both devices; the even blocks are on the one, the odd ones on the other."""
    expected = FEW[asked](make_model("llama"), "left").to_numpy()
    with pretended_devices():
        names = device_map(model := make_model("llama"))
        places = {name: AWAY if name.endswith((".1", ".3", ".norm", "lm_head")) else HOME for name in names}
        placed = dispatch_model(model, places, main_device=HOME)
        assert {parameter.device for parameter in placed.parameters()} == {HOME, AWAY}
        for item in CODERS:
            monkeypatch.setattr(item, "parts", [part.to(HOME) for part in item.parts])
        found = FEW[asked](placed, "left").to_numpy()
    assert abs(found - expected).max() < 1e-10
    with pretended_devices(), pytest.raises(RuntimeError, match="same device, and aten::add got"):
        torch.ones(2, device=HOME) + torch.ones(2, device=AWAY)


def loading(kind: str, folder: Path, **settings: Any) -> it.HFFromPretrainedConfig:
    """On disk; an unembedding that is tied to the embedding stays with it."""
    model = plain_model(kind)
    where = device_map(model) | ({"lm_head": "cpu"} if model.config.tie_word_embeddings else {})
    placed = {"device_map": where, "offload_folder": str(folder / "weights")}
    return it.HFFromPretrainedConfig(pretrained_kwargs={**placed, **settings})


MODES = ("clean_no_sae", "clean_w_sae", "ablation", "attr_patching")


@pytest.mark.parametrize(("kind", "side"), [("llama", "left"), ("gpt2", "right")])
def test_a_session_with_a_device_map_gives_the_stores_of_one_without(tmp_path: Path, kind: str, side: str) -> None:
    latents = [
        RandomDictionary("layers.0.resid_post", seed=1, skips=True),
        RandomDictionary("layers.2.mlp_out", seed=2),
    ]
    whole = make_session(tmp_path / "whole", kind, side=side, latent_models=latents)
    placed = make_session(
        tmp_path / "placed", kind, side=side, latent_models=latents, hf_from_pretrained_cfg=loading(kind, tmp_path)
    )
    assert is_offloaded(placed.module.model)
    one, other = (
        AnalysisRunner(**session, root=tmp_path / name).run({mode: mode for mode in MODES})
        for name, session in (("a", whole), ("b", placed))
    )
    for mode in MODES:
        assert one[mode].manifest.key == other[mode].manifest.key, f"{mode}: placement is not content"
        (expected, found) = (
            pd.concat(batch.to_pandas() for batch in store[mode].record_batches()) for store in (one, other)
        )
        pd.testing.assert_frame_equal(found, expected, rtol=0, atol=1e-5)
    batch = {
        "input_ids": (tokens := unpadded_rows(whole)[0][0].unsqueeze(0)),
        "attention_mask": torch.ones_like(tokens),
    }
    with torch.no_grad():
        logits = [session.module(**batch).logits for session in (whole, placed)]
        texts = [session.module.it_generate(batch, max_new_tokens=3).sequences for session in (whole, placed)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)
    assert torch.equal(*texts)
    assert CheckpointIdentity.of(placed.module) == CheckpointIdentity.of(whole.module)
    moved = placed.module.to("meta")  # as trainers do it, with other devices
    assert {item.device.type for item in moved.latent_modules.parameters()} == {"meta"}
    assert moved.device.type == "cpu"
    with pytest.raises(it.ConfigurationError, match=r"placed by accelerate in torch.float32.*changed to torch.float64"):
        placed.module.double()


def test_16_and_4_bits_are_placed_as_any_other(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    make_model("llama", torch.float32).save_pretrained(tmp_path / "model")
    places, asked = (
        device_map(make_model("llama")),
        {"side": "left", "units": it.Heads(1)},
    )  # neurons begin elsewhere: rounding

    def load(quantization: Any = None, **options: Any) -> Any:
        how = it.HFFromPretrainedConfig(pretrained_kwargs={"dtype": "bfloat16", **options}, quantization=quantization)
        return it.load_hf_model(it.ITConfig(model_name_or_path=str(tmp_path / "model"), hf_from_pretrained_cfg=how))

    whole, placed = load(device_map={"": "cpu"}), load(device_map=places, offload_folder=str(tmp_path / "weights"))
    assert is_offloaded(placed)
    torch.testing.assert_close(*(torch.tensor(effects_of(model, **asked)) for model in (whole, placed)))
    four = {"load_in_4bit": True}
    whole, placed = load(four), load(four, device_map=dict.fromkeys(places, "cpu"))
    torch.testing.assert_close(*(torch.tensor(effects_of(model, **asked)) for model in (whole, placed)))
    with pytest.raises(it.ModelLoadError, match="dispatched on the CPU or the disk"):
        load(four, device_map=places, offload_folder=str(tmp_path / "weights"))


def on_meta() -> Any:
    """Accelerate's own hook runs a block where it is: on meta."""
    model = tiny_llama()
    places = dict.fromkeys(device_map(model), "cpu") | {"model.layers.1": "meta"}
    return dispatch_model(model, places, main_device="cpu")


def tied_elsewhere(folder: Path) -> Any:
    cfg = loading("gpt2", folder)
    cfg.pretrained_kwargs["device_map"]["lm_head"] = "disk"
    return it.load_hf_model(it.ITConfig(model_name_or_path=str(saved_tiny_model("gpt2")), hf_from_pretrained_cfg=cfg))


def test_blocks_without_weights_are_refused_by_name(tmp_path: Path) -> None:
    where = r"model\.layers\.1 has weights without values, on the device meta, and nothing fills them in"
    with pytest.raises(it.AnalysisError, match=f"Of the LlamaForCausalLM, {where}.*device_map that has 'cpu'"):
        effects_of(on_meta(), "left")
    with pytest.raises(it.ModelLoadError, match=where):
        it.load_hf_model(it.ITConfig(hf_model=on_meta()))
    with pytest.raises(it.AnalysisError, match=r"model.embed_tokens, model.layers.0, model.layers.1 and 3 more have"):
        HuggingFaceBackend(tiny_llama().to("meta"))
    whole = cpu_offload(tiny_llama(), preload_module_classes=["LlamaDecoderLayer"])
    with pytest.raises(it.ModelLoadError, match=r"model\.layers\.0\.\S+ are filled in with those of a whole block"):
        it.load_hf_model(it.ITConfig(hf_model=whole))
    with pytest.raises(it.ModelLoadError, match=r"lm_head has weights without values.*tied to others where these are"):
        tied_elsewhere(tmp_path)


def test_what_offloaded_weights_cannot_do_is_refused(tmp_path: Path) -> None:
    cfg, source = loading("llama", tmp_path), str(saved_tiny_model("llama"))
    asked: dict[str, Any] = {"model_name_or_path": source, "hf_from_pretrained_cfg": cfg}
    for training in ({"freeze": False}, {"lora": {"r": 2}}):
        with pytest.raises(it.ConfigurationError, match="are offloaded: they are in memory during a forward only"):
            it.load_hf_model(it.ITConfig(**asked, **training))
    with pytest.raises(it.ConfigurationError, match="ITConfig.device is 'meta', and a device_map has placed"):
        it.load_hf_model(it.ITConfig(**asked, device="meta"))


def test_a_device_beside_another_device_map_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    source, where = str(saved_tiny_model("llama")), it.HFFromPretrainedConfig(pretrained_kwargs={"device_map": "cpu"})
    asked: dict[str, Any] = {"model_name_or_path": source, "hf_from_pretrained_cfg": where}
    with pytest.raises(it.ConfigurationError, match="ITConfig.device is 'meta', and a device_map has placed"):
        it.load_hf_model(it.ITConfig(**asked, device="meta"))
    for device in ("cpu", "cpu:0"):
        assert it.load_hf_model(it.ITConfig(**asked, device=device)).device.type == "cpu"
    monkeypatch.setattr("interpretune.models.loading.input_device", lambda model: torch.device("cuda", 0))
    with pytest.raises(it.ConfigurationError, match="ITConfig.device is 'cuda:1', and a device_map has placed"):
        it.load_hf_model(it.ITConfig(**asked, device="cuda:1"))


def test_two_quantizations_are_refused() -> None:
    how = it.HFFromPretrainedConfig(quantization={"load_in_4bit": True}, pretrained_kwargs={"quantization_config": {}})
    with pytest.raises(it.ConfigurationError, match="both quantization and pretrained_kwargs"):
        it.load_hf_model(it.ITConfig(model_name_or_path=str(saved_tiny_model("llama")), hf_from_pretrained_cfg=how))


def test_no_device_map_leaves_that_of_quantization(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: dict[str, Any] = {}

    def from_pretrained(source: str, **options: Any) -> Any:
        passed.update(options)
        return tiny_llama()

    monkeypatch.setattr("interpretune.models.loading.quantized_loading", lambda *_: {"device_map": {"": "cpu"}})
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", from_pretrained)
    how = it.HFFromPretrainedConfig(pretrained_kwargs={"device_map": None})
    it.load_hf_model(it.ITConfig(model_name_or_path=str(saved_tiny_model("llama")), hf_from_pretrained_cfg=how))
    assert passed["device_map"] == {"": "cpu"}


def test_damaged_weights_are_found_where_they_are_kept(tmp_path: Path) -> None:
    damaged = tiny_llama()
    damaged.model.layers[2].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(it.NotFiniteError, match=r"first in model\.layers\.2\.mlp\.up_proj\.weight"):
        effects_of(PLACEMENTS["disk"](damaged, tmp_path), "left", units=[it.Heads(1)])


def test_threads_take_turns_with_offloaded_weights(tmp_path: Path) -> None:
    """Each fills the weights in and takes them out: two at once would take them from each other."""
    placed = PLACEMENTS["disk"](make_model("llama"), tmp_path)
    expected = effects_of(make_model("llama"), "left", units=[it.Heads(1)])
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda _: effects_of(placed, "left", units=[it.Heads(1)]), range(3)):
            assert abs(found - expected).max() < 1e-10


def test_the_search_for_damage_waits_for_forwards_of_others(tmp_path: Path) -> None:
    """It fills offloaded weights in and takes them out, which a forward of another thread must not meet."""
    placed = PLACEMENTS["memory"](tiny_llama(), tmp_path)
    with ThreadPoolExecutor(1) as pool:
        with model_lock(placed):
            told = pool.submit(likely_cause, placed)
            with pytest.raises(TimeoutError):
                told.result(timeout=0.3)
        assert "says where" in told.result(timeout=60)
