"""Fine-tuning that people do: all weights, LoRA, quantized weights, classification heads; and wrong batches."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CTRLConfig,
    CTRLForSequenceClassification,
    ModernBertDecoderConfig,
    ModernBertDecoderForSequenceClassification,
    T5GemmaConfig,
    T5GemmaForSequenceClassification,
    T5GemmaModuleConfig,
)

import interpretune as it
from interpretune.models.lora import merge_lora
from tests.sessions import STACKS, make_session
from tests.tiny import TINY_MODELS, VOCABULARY, tiny_llama

FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
EIGHT_BITS = {"load_in_8bit": True}
HEAD = it.HFFromPretrainedConfig(model_head="transformers.AutoModelForSequenceClassification")
LORA = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
Make = Callable[..., it.ITSession]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(kind: str = "llama", side: str = "left", **settings: Any) -> it.ITSession:
        options = {
            "optimizer_init": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-3}},
            "module_cls": it.ClassificationModule,
            "init": False,
            **settings,
        }
        return make_session(tmp_path / f"{kind}-{side}", kind, side=side, **options)

    return make


def fit(session: it.ITSession, epochs: int = 6) -> tuple[float, float]:
    """Loss on the training rows before and after."""
    it.it_init(**session)
    session.datamodule.val_dataloader = session.datamodule.train_dataloader
    quiet = it.LoopConfig(progress=False)
    before = it.validate(**session, loop_cfg=quiet).metrics["val_loss"]
    it.fit(**session, loop_cfg=it.LoopConfig(max_epochs=epochs, seed=0, progress=False, limit_val_batches=0))
    return before, it.validate(**session, loop_cfg=quiet).metrics["val_loss"]


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: item.detach().clone() for name, item in module.named_parameters()}


@pytest.mark.parametrize(("kind", "head"), [("gpt2", "answers"), ("llama", "classes")])
def test_all_weights(make, kind, head):
    settings = {"hf_from_pretrained_cfg": HEAD, "num_labels": 2} if head == "classes" else {}
    session = make(kind, **settings)
    before, after = fit(session)
    assert after < before / 2
    assert session.module.model.config.num_labels == 2


@pytest.mark.parametrize(("quantization", "head"), [(None, 0), (None, 2), (FOUR_BITS, 0), (EIGHT_BITS, 0)])
def test_lora_trains_its_matrices_and_nothing_else(make, quantization, head):
    cfg = it.HFFromPretrainedConfig(quantization=quantization, model_head=HEAD.model_head if head else None)
    session = make(lora=LORA, hf_from_pretrained_cfg=cfg, num_labels=head)
    model = session.module.model
    kept = weights(model)
    before, after = fit(session)
    assert after < before
    changed = {name for name, item in model.named_parameters() if not torch.equal(kept[name], item)}
    trained = {name for name, item in model.named_parameters() if item.requires_grad}
    assert changed == trained
    own = {name for name in trained if ".lora_" not in name}
    assert own == ({"score.modules_to_save.default.weight"} if head else set())
    assert type(model).__name__ == ("LlamaForSequenceClassification" if head else "LlamaForCausalLM")


@pytest.mark.parametrize("settings", [{}, {"hf_from_pretrained_cfg": HEAD, "num_labels": 2}])
def test_a_saved_adapter_gives_the_same_logits_on_the_same_model(make, tmp_path, settings):
    session = make(lora=LORA, **settings)
    fit(session)
    session.module.model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again = make(lora=tmp_path / "adapter", optimizer_init=None, init=True, **settings)
    plain = make(optimizer_init=None, init=True, **settings)
    batch = next(iter(again.datamodule.test_dataloader()))
    batch.pop("labels")
    with torch.no_grad():
        expected, found, without = (each.module(**batch).logits for each in (session, again, plain))
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(without, expected, atol=1e-2)
    assert not any(item.requires_grad for item in again.module.parameters())
    further = make(lora=tmp_path / "adapter", init=True, **settings)
    trained = [
        {name for name, item in each.module.named_parameters() if item.requires_grad} for each in (session, further)
    ]
    assert trained[0] == trained[1]


def test_a_saved_adapter_of_another_model_is_refused(tmp_path):
    """transformers fills what is missing with random numbers and drops what is too much."""
    it.load_hf_model(it.ITConfig(hf_model=tiny_llama(), lora=LORA, device="cpu")).save_pretrained(tmp_path)
    for n_layers in (2, 4):
        config = tiny_llama().config
        config.num_hidden_layers = n_layers
        with pytest.raises(it.ModelLoadError, match=r"belongs to another model .*model\.layers\.[23]\.self_attn"):
            it.load_hf_model(it.ITConfig(hf_config=config, lora=tmp_path, device="cpu"))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_merged_matrices_leave_an_ordinary_model(kind):
    """peft chooses the layers; those of GPT-2 keep their weights transposed."""
    model = it.load_hf_model(it.ITConfig(hf_model=TINY_MODELS[kind](), lora={"r": 4}, device="cpu"))
    matrices = [item for name, item in model.named_parameters() if ".lora_" in name]
    assert [item for item in model.parameters() if item.requires_grad] == matrices
    with torch.no_grad():
        for matrix in matrices:
            matrix.normal_(0, 0.3)
        tokens = torch.arange(4, 24).reshape(2, 10)
        expected = model(tokens).logits
        merge_lora(model)
        found, without = model(tokens).logits, TINY_MODELS[kind]()(tokens).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(without, expected, atol=1e-1)
    assert model.state_dict().keys() == TINY_MODELS[kind]().state_dict().keys()


def test_quantized_weights_are_used_as_they_were_quantized_before_and_after_an_evaluation(gpt2_folder):
    """On some CPUs bitsandbytes would repack them in an evaluation, and lose every gradient from then on."""
    from bitsandbytes.functional import dequantize_4bit

    folder = gpt2_folder.parent / "wide"
    config = tiny_llama().config
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    it.load_hf_model(it.ITConfig(hf_config=config, device="cpu")).save_pretrained(folder)
    cfg = it.HFFromPretrainedConfig(quantization=FOUR_BITS)
    model, plain = (
        it.load_hf_model(it.ITConfig(model_name_or_path=str(folder), device="cpu", hf_from_pretrained_cfg=each))
        for each in (cfg, it.HFFromPretrainedConfig())
    )
    unquantized = dict(plain.named_parameters())
    with torch.no_grad():
        for name, item in model.named_parameters():
            if hasattr(item, "quant_state"):
                unquantized[name].copy_(dequantize_4bit(item.data, item.quant_state))
    embeddings = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0))
    found, expected = (_logits_and_gradient(each, embeddings) for each in (model, plain))
    with torch.no_grad():
        assert torch.allclose(model(inputs_embeds=embeddings).logits, expected[0], atol=1e-5)
    again = _logits_and_gradient(model, embeddings)
    for one, two, other in zip(found, again, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
        assert torch.allclose(two, other, atol=1e-4)


def _logits_and_gradient(model: nn.Module, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    model.requires_grad_(False)
    given = embeddings.clone().requires_grad_()
    logits = model(inputs_embeds=given).logits
    logits.square().sum().backward()
    return logits.detach(), given.grad


def test_analyses_see_a_model_with_lora(make):
    session = make(lora=LORA, init=True)
    assert "model.layers.1:out" in session.module.backend.hook_point_names()
    if not importlib.util.find_spec("interpretune_tlens"):
        return
    bridge = make(lora=LORA, adapters=("transformer_lens",), init=True)
    ours, theirs = (
        [item for name, item in each.module.named_parameters() if "lora_" in name] for each in (session, bridge)
    )
    with torch.no_grad():
        for one, other in zip(ours, theirs, strict=True):
            other.copy_(one.normal_(0, 0.3))
    batch = next(iter(session.datamodule.test_dataloader()))
    batch.pop("labels")
    with torch.no_grad():
        expected = session.module(**batch).logits
    mask = batch["attention_mask"].bool()
    assert torch.allclose(bridge.module(**batch)[mask], expected[mask], atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_classification_head_answers_a_padded_row_like_the_row_alone(make, kind, side):
    """BOS and padding share an id, and so may a row's last real token."""
    session = make(kind, side, hf_from_pretrained_cfg=HEAD, num_labels=2, optimizer_init=None, init=True)
    batch = next(iter(session.datamodule.test_dataloader()))
    tokens, mask = batch["input_ids"].clone(), batch["attention_mask"]
    last = [row.nonzero().max().item() for row in mask]
    tokens[0, last[0]] = session.datamodule.tokenizer.pad_token_id
    with torch.no_grad():
        together = session.module(input_ids=tokens, attention_mask=mask, labels=batch["labels"])
        model = session.module.model
        alone = [
            model.score(model.base_model(row[kept.bool()][None]).last_hidden_state[0, -1])
            for row, kept in zip(tokens, mask, strict=True)
        ]
    assert torch.allclose(together.logits, torch.stack(alone), atol=1e-5)
    assert torch.allclose(together.loss, nn.functional.cross_entropy(torch.stack(alone), batch["labels"]), atol=1e-5)


def other_classifier(kind: str) -> tuple[Any, Any]:
    """A classifier whose head has another name, and what it computes from a row alone."""
    sizes = {"vocab_size": len(VOCABULARY), "num_labels": 2, "pad_token_id": 0, "initializer_range": 0.3}
    if kind == "ctrl":
        config = CTRLConfig(n_embd=32, dff=64, n_layer=2, n_head=4, n_positions=128, **sizes)
        model = CTRLForSequenceClassification(config).eval()
        return model, lambda row: model.classifier(model.transformer(row)[0])[0, -1]
    names = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "modernbert-decoder":
        config = ModernBertDecoderConfig(max_position_embeddings=128, **names, **sizes)
        model = ModernBertDecoderForSequenceClassification(config).eval()
        return model, lambda row: model.classifier(model.head(model.model(row)[0]))[0, -1]
    model = BertForSequenceClassification(
        BertConfig(**names, **sizes)
    ).eval()  # an encoder answers from its first token
    return model, lambda row: model(row).logits[0]


@pytest.mark.parametrize(
    ("kind", "side"),
    [(kind, side) for kind in ("ctrl", "modernbert-decoder") for side in ("left", "right")] + [("bert", "right")],
)
def test_so_does_a_head_of_another_name(make, kind, side):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, alone = other_classifier(kind)
    session = make("gpt2", side, hf_model=model, num_labels=2, optimizer_init=None, init=True)
    batch = next(iter(session.datamodule.test_dataloader()))
    tokens, mask = batch["input_ids"].clone(), batch["attention_mask"]
    tokens[0, mask[0].nonzero().max()] = 0  # a real token with the id of padding
    with torch.no_grad():
        together = session.module(input_ids=tokens, attention_mask=mask).logits
        expected = torch.stack([alone(row[kept.bool()][None]) for row, kept in zip(tokens, mask, strict=True)])
    assert torch.allclose(together, expected, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


def test_a_classifier_with_encoder_and_decoder_is_refused(make):
    part = T5GemmaModuleConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    config = T5GemmaConfig(encoder=part, decoder=part, vocab_size=len(VOCABULARY), num_labels=2)
    model = T5GemmaForSequenceClassification(config)
    with pytest.raises(it.ConfigurationError, match="T5GemmaForSequenceClassification is an encoder with a decoder"):
        make("gpt2", hf_model=model, num_labels=2, optimizer_init=None, init=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hf_from_pretrained_cfg": it.HFFromPretrainedConfig(quantization=FOUR_BITS)}, "which cannot be trained"),
        (
            {"hf_from_pretrained_cfg": it.HFFromPretrainedConfig(quantization={"load_in_2bit": True})},
            "has no argument 'load_in_2bit'",
        ),
        (
            {"hf_from_pretrained_cfg": it.HFFromPretrainedConfig(quantization=FOUR_BITS), "hf_model": "llama"},
            "quantization and hf_model are both set",
        ),
        (
            {"hf_from_pretrained_cfg": it.HFFromPretrainedConfig(quantization={**FOUR_BITS, **EIGHT_BITS})},
            "Give one of load_in_4bit=True and load_in_8bit=True",
        ),
        (
            {"lora": {"target_modules": ["query", "q_proj"]}},
            "target_modules that LlamaForCausalLM does not have: query. Its",
        ),
        ({"lora": {"target_modules": ["norm"]}}, "cannot be added to LlamaForCausalLM: Target module .* is not supp"),
        ({"lora": {"rank": 4}}, "It takes the arguments of peft.LoraConfig"),
        ({"lora": "/nowhere/adapter"}, "The LoRA adapter '/nowhere/adapter' .hub id. cannot be loaded"),
        ({"lora": LORA, "freeze": True}, "no parameter requires a gradient"),
    ],
)
def test_configurations_that_cannot_work_are_refused(make, settings, message):
    if settings.get("hf_model"):
        settings = {**settings, "hf_model": TINY_MODELS[settings["hf_model"]]()}
    with pytest.raises(it.InterpretuneError, match=message):
        it.it_init(**make(**settings))


@pytest.mark.parametrize(("package", "extra"), [("peft", "lora"), ("bitsandbytes", "quantization")])
def test_missing_packages_are_named_with_their_extra(make, monkeypatch, package, extra):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    settings = {
        "lora": {"lora": LORA},
        "quantization": {"hf_from_pretrained_cfg": it.HFFromPretrainedConfig(quantization=FOUR_BITS)},
    }[extra]
    with pytest.raises(it.ConfigurationError, match=rf'pip install .*"interpretune-core\[{extra}\]"'):
        make(**settings)


def test_a_device_that_bitsandbytes_does_not_know(make, monkeypatch):
    def refuse(*args, **kwargs):
        raise NotImplementedError("no kernel for this device")

    monkeypatch.setattr("bitsandbytes.functional.int8_vectorwise_quant", refuse)
    with pytest.raises(it.ModelLoadError, match="cannot quantize to 8 bits on the device 'cpu'.*no kernel") as caught:
        make(hf_from_pretrained_cfg=it.HFFromPretrainedConfig(quantization=EIGHT_BITS))
    assert isinstance(caught.value.__cause__, NotImplementedError)


def test_a_gguf_file_is_not_quantized_again():
    cfg = it.ITConfig(
        model_name_or_path="tiny.gguf", hf_from_pretrained_cfg=it.HFFromPretrainedConfig(quantization=FOUR_BITS)
    )
    with pytest.raises(it.ConfigurationError, match=r"tiny\.gguf is a GGUF file.*Drop quantization"):
        it.load_hf_model(cfg)


def test_the_number_of_labels_and_the_padding_id_reach_the_head(make):
    session = make(hf_from_pretrained_cfg=HEAD, num_labels=3, init=True)
    assert session.module.model.score.out_features == 3
    assert session.module.model.config.pad_token_id == session.datamodule.tokenizer.pad_token_id
    fresh = it.ITConfig(hf_config=tiny_llama().config, num_labels=5, hf_from_pretrained_cfg=HEAD, device="cpu")
    assert it.load_hf_model(fresh).score.out_features == 5
    with pytest.raises(it.ConfigurationError, match=r"num_labels is 2, and the head of the LlamaFor.* has 3 labels"):
        make(hf_model=session.module.model, num_labels=2)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_keys_that_the_model_would_ignore_are_refused(make, kind):
    session = make(kind, init=True)
    batch = dict(next(iter(session.datamodule.test_dataloader())))
    assert session.module(**{**batch, "labels": batch["input_ids"]}).loss.ndim == 0  # transformers take labels
    with pytest.raises(
        it.DataError, match="The batch holds 'idx', which (LlamaForCausalLM|GPT2LMHeadModel) does not take"
    ):
        session.module(**batch, idx=torch.arange(len(batch["labels"])))


@pytest.mark.parametrize("stack", [stack for stack in STACKS if stack != "core"])
def test_other_stacks_refuse_them_too(stack, tmp_path):
    session = make_session(tmp_path, "llama", stack)
    batch = dict(next(iter(session.datamodule.test_dataloader())))
    del batch["labels"]
    assert session.module(**batch, return_type="logits").ndim == 3
    with pytest.raises(it.DataError, match="The batch holds 'idx'"):
        session.module(**batch, idx=torch.arange(3))
