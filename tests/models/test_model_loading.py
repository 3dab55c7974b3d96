"""Loading Hugging Face models from every source, and what is said when one cannot be had."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, LlamaForCausalLM

import interpretune as it
from interpretune.models.loading import resolve_source
from tests.tiny import tiny_gpt2, tiny_llama


def same_weights(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    left, right = one.state_dict(), two.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def load(**settings):
    settings.setdefault("device", "cpu")
    return it.load_hf_model(it.ITConfig(**settings))


def pretrained(**options):
    return it.HFFromPretrainedConfig(**options)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_folder(kind, request):
    folder = request.getfixturevalue(f"{kind}_folder")
    model = load(model_name_or_path=str(folder))
    expected = {"gpt2": tiny_gpt2, "llama": tiny_llama}[kind]()
    assert same_weights(model, expected)
    assert not model.training
    assert model.dtype is torch.float32


def test_a_configuration_alone_gives_random_weights_by_seed():
    config = tiny_llama().config
    before = copy.deepcopy(config.to_dict())
    torch.manual_seed(123)
    expected_next = torch.rand(1)
    torch.manual_seed(123)
    one, two, other = (
        load(hf_config=config, seed=seed, tokenizer_id_overrides={"pad_token_id": 3}) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.rand(1), expected_next), "the state of the caller's random numbers changed"
    assert isinstance(one, LlamaForCausalLM)
    assert same_weights(one, two)
    assert not same_weights(one, other)
    assert one.config.pad_token_id == 3
    assert config.to_dict() == before, "the caller's configuration changed"


def test_a_model_in_memory_is_used_as_it_is():
    model = tiny_gpt2(seed=5)
    assert load(hf_model=model) is model
    assert same_weights(model, tiny_gpt2(seed=5))


def test_a_model_in_memory_wins_over_a_configuration_and_a_name():
    model = tiny_gpt2()
    assert load(hf_model=model, hf_config=tiny_llama().config, model_name_or_path="nobody/nothing") is model


@pytest.mark.parametrize(
    "options", [{"dtype": "bfloat16"}, {"torch_dtype": "torch.bfloat16"}, {"dtype": torch.bfloat16}]
)
def test_dtypes_by_name(gpt2_folder, options):
    before, given = torch.get_default_dtype(), dict(options)
    model = load(model_name_or_path=str(gpt2_folder), hf_from_pretrained_cfg=pretrained(pretrained_kwargs=options))
    assert model.dtype is torch.bfloat16
    assert torch.get_default_dtype() is before
    assert options == given, "the caller's arguments changed"


def test_a_model_head_by_its_path(gpt2_folder):
    cfg = pretrained(model_head="transformers.GPT2LMHeadModel")
    assert isinstance(load(model_name_or_path=str(gpt2_folder), hf_from_pretrained_cfg=cfg), GPT2LMHeadModel)


def test_token_ids_reach_the_model(gpt2_folder):
    model = load(model_name_or_path=str(gpt2_folder), tokenizer_id_overrides={"pad_token_id": 3})
    assert model.config.pad_token_id == 3


def refused(error, **settings) -> str:
    with pytest.raises(error) as caught:
        load(**settings)
    return str(caught.value)


def test_no_source():
    message = refused(it.ConfigurationError)
    for part in ("model_name_or_path", "hf_model", "hf_config"):
        assert part in message


def test_an_unknown_id_says_how_to_use_a_local_folder():
    message = refused(it.ModelLoadError, model_name_or_path="nobody/nothing")
    for part in (
        "'nobody/nothing' (hub id)",
        "Without a network",
        "`model_name_or_path` a local folder",
        "save_pretrained",
    ):
        assert part in message


def test_a_folder_that_holds_no_model(tmp_path):
    message = refused(it.ModelLoadError, model_name_or_path=str(tmp_path))
    assert f"{str(tmp_path)!r} (folder)" in message


def test_truncated_weights(gpt2_folder, tmp_path):
    for file in gpt2_folder.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[:1000] if file.suffix == ".safetensors" else content)
    assert "cannot be loaded" in refused(it.ModelLoadError, model_name_or_path=str(tmp_path))


@pytest.mark.parametrize("dtype", ["float33", "Tensor", "nn"])
def test_an_unknown_dtype(gpt2_folder, dtype):
    cfg = pretrained(pretrained_kwargs={"dtype": dtype})
    message = refused(it.ConfigurationError, model_name_or_path=str(gpt2_folder), hf_from_pretrained_cfg=cfg)
    assert f"Unknown dtype {dtype!r}" in message
    assert "'bfloat16'" in message


@pytest.mark.parametrize("head", ["transformers.NoSuchModel", "no_such_package.Model", "JustAName"])
def test_an_unknown_model_head(head):
    message = refused(it.ConfigurationError, hf_model=tiny_gpt2(), hf_from_pretrained_cfg=pretrained(model_head=head))
    assert "hf_from_pretrained_cfg.model_head" in message
    assert repr(head) in message


# ---------------------------------------------------------------------------------------------------------------- GGUF


def test_a_missing_gguf_file(tmp_path):
    message = refused(it.ModelLoadError, model_name_or_path=str(tmp_path / "gone.gguf"))
    assert f"The GGUF file {tmp_path / 'gone.gguf'} does not exist" in message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a model",
        b"GGUF",
        b"GGUF" + bytes(20),
        b"GGUF\x03\x00\x00\x00" + b"\xff" * 64,
        b"GGUF\x03" + bytes(99),
    ],
    ids=["empty", "text", "magic", "zeros", "nonsense", "no tensors"],
)
def test_a_corrupt_gguf_file_leaves_no_cache(tmp_path, own_cache, content):
    pytest.importorskip("gguf")
    file = tmp_path / "broken.gguf"
    file.write_bytes(content)
    message = refused(it.ModelLoadError, model_name_or_path=str(file))
    assert f"The GGUF file {file} cannot be read" in message
    assert [path for path in own_cache.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_gguf_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("interpretune.models.loading.importlib.util.find_spec", lambda name: None)
    assert "interpretune-core[gguf]" in refused(it.ModelLoadError, model_name_or_path=str(tmp_path / "a.gguf"))


def test_a_gguf_file_is_converted_once_and_again_when_it_changes(tmp_path, monkeypatch):
    converted = []

    def convert(path: Path, folder: Path) -> None:
        converted.append(path)
        (folder / "model.safetensors").write_bytes(path.read_bytes())

    monkeypatch.setattr("interpretune.models.loading.convert_gguf", convert)
    file = tmp_path / "tiny.GGUF"
    file.write_bytes(b"one")
    assert resolve_source(str(file)) == resolve_source(str(file))
    assert len(converted) == 1
    first = resolve_source(str(file))
    file.write_bytes(b"two")
    assert resolve_source(str(file)) != first
    assert len(converted) == 2
    assert resolve_source("some/model") == "some/model"


def test_the_marks_of_quantization_are_removed_so_that_a_converted_model_can_be_saved(
    tmp_path, monkeypatch, gpt2_folder
):
    pytest.importorskip("gguf")
    model = tiny_gpt2()
    model.config.quantization_config = {"quant_method": "gguf"}
    model.hf_quantizer, model.quantization_method, model.is_quantized = object(), "gguf", True
    tokenizer = it.load_tokenizer(it.ITSharedConfig(model_name_or_path=str(gpt2_folder)))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *args, **kwargs: model)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *args, **kwargs: tokenizer)
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    folder = resolve_source(str(file))
    monkeypatch.undo()
    saved = AutoModelForCausalLM.from_pretrained(folder)
    assert same_weights(saved, tiny_gpt2())
    assert "quantization_config" not in saved.config.to_dict()


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "runs/nowhere/model", "~/nowhere-at-all"])
def test_a_path_to_nothing_is_not_asked_of_the_hub(name):
    assert f"is {name!r}, and no such folder exists" in refused(it.ModelLoadError, model_name_or_path=name)
