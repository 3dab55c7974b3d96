"""Models and stores in the states in which users have them: wrapped, training, of several threads, not in memory."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pandas as pd
import pytest
from transformers import LlamaForSequenceClassification

import interpretune as it
from interpretune.testing.tiny_models import tiny_llama, tiny_tokenizer

ROWS = [
    it.PromptRow("Ada sees the red dog near the", (" house", " tree"), 0),
    it.PromptRow("Bo likes a boat and", (" Max", " Nora"), 1),
]
UNITS = [it.Heads(1), it.Vector("layers.0.mlp_out")]


def table(model, tokenizer=None, **asked):
    return it.effects(model, tokenizer or tiny_tokenizer(), ROWS, units=UNITS, **asked).to_pandas()


@pytest.fixture(scope="module")
def expected():
    return table(tiny_llama().eval())


@pytest.mark.parametrize("positions", ["answer", "each"])
def test_a_model_in_16_bits_tells_its_noise(positions):
    asked = {"units": UNITS, "positions": positions, "batch_size": 1}
    rounded, wide = tiny_llama().eval().bfloat16(), tiny_llama().eval().bfloat16().float()  # the same weights
    found, exact = (it.effects(model, tiny_tokenizer(), ROWS, **asked) for model in (rounded, wide))
    error = (found.to_pandas().effect - exact.to_pandas().effect).pow(2).mean() ** 0.5
    assert error / 4 < found.noise < 4 * error
    assert f"Rounding alone changes an effect by about {found.noise:.2g} logits" in str(found)
    assert exact.noise is None


def test_a_model_is_run_in_evaluation_and_stays_as_it_was(expected):
    model = tiny_llama(dropout=0.5).train()
    pd.testing.assert_frame_equal(table(model), expected)
    table(model, method="gradient")
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_threads_take_turns(expected):
    model = tiny_llama(dropout=0.5).train()
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda _: table(model), range(3)):
            pd.testing.assert_frame_equal(found, expected)
    assert model.training


def test_a_tokenizer_needs_no_padding_token(expected):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    pd.testing.assert_frame_equal(table(tiny_llama().eval(), tokenizer), expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # read by peft
def test_lora_takes_part(expected):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    found, merged = table(model), table(copy.deepcopy(model).merge_and_unload())
    assert found.effect.to_numpy() == pytest.approx(merged.effect.to_numpy(), abs=1e-5)
    assert (found.effect - expected.effect).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: tiny_llama().to("meta"), "weights without values, on the device meta"),
        (lambda: tiny_llama().model, "A LlamaModel gives no logits"),
        (lambda: LlamaForSequenceClassification(tiny_llama().config), "gives no logits"),
        (lambda: SimpleNamespace(active_peft_config=SimpleNamespace(is_prompt_learning=True)), "tokens of its own"),
    ],
)
def test_models_that_cannot_be_asked_are_refused(make, told):
    with pytest.raises(it.AnalysisError, match=told):
        table(make())


def test_no_credential_is_stored(tmp_path):
    model, secret = tiny_llama().eval(), "hf_" + "xYzQ7" * 7
    model.config.token = model.config.use_auth_token = secret
    model.config._name_or_path = f"https://user:{secret}@example.org/model?token={secret}"
    table(model, store=tmp_path / "store")
    it.effects(model, tiny_tokenizer(), ROWS, units=UNITS).report(tmp_path / "of-memory.html")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 2
    assert [file.name for file in files if secret.encode() in file.read_bytes()] == []


def test_a_damaged_store_is_refused(tmp_path):
    model, folder = tiny_llama().eval(), tmp_path / "store"
    table(model, store=folder)
    (shard,) = folder.rglob("*.parquet")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    for use in (lambda: it.Effects.open(folder).to_pandas(), lambda: table(model, store=folder)):
        with pytest.raises(it.StoreError, match="cannot be read|checksum|damaged"):
            use()
