"""TransformerLens models out of Hugging Face models: same numbers, caller's model untouched, wrong ones refused."""

from __future__ import annotations

import copy
import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import BloomConfig, GPT2Config, PretrainedConfig, PreTrainedModel

import interpretune as it
from interpretune import ConfigurationError, ModelLoadError
from interpretune.analysis import ModelInputs
from interpretune_tlens import (
    ITLensFromPretrainedConfig,
    ITLensFromPretrainedNoProcessingConfig,
    TLensGenerationConfig,
)
from tests.sessions import make_session, padded, plain_model, unpadded_rows
from tests.tiny import VOCABULARY
from tests.tiny_latents import last_logits, module_and_side

KINDS = ("gpt2", "llama")
MLP_OUT = "blocks.1.hook_mlp_out"


def session_with(folder: Path, kind: str = "gpt2", **settings: Any) -> it.ITSession:
    return make_session(folder, kind, adapters=("transformer_lens",), **settings)


def no_processing(*, use_bridge: bool) -> ITLensFromPretrainedNoProcessingConfig:
    return ITLensFromPretrainedNoProcessingConfig(use_bridge=use_bridge)


def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens.unsqueeze(0), attention_mask=torch.ones(1, len(tokens), dtype=torch.long))[0, -1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use_bridge", [True, False])
def test_the_callers_model_is_not_changed(tmp_path: Path, kind: str, use_bridge: bool) -> None:
    model = plain_model(kind).train().requires_grad_(True)
    before = copy.deepcopy(model)
    modules = {name: type(module) for name, module in model.named_modules()}
    tokens = torch.tensor([0, 20, 30, 40])
    session = session_with(tmp_path, kind, hf_model=model, tl_cfg=no_processing(use_bridge=use_bridge))
    assert {name: type(module) for name, module in model.named_modules()} == modules
    assert model.config.to_dict() == before.config.to_dict()
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    wanted = last_logits(before.eval(), tokens).detach()
    torch.testing.assert_close(last_logits(model.eval(), tokens).detach(), wanted, rtol=0, atol=0)
    with torch.no_grad():  # and what happens to it later does not reach the session
        mlp, _ = module_and_side(model, "blocks.0.hook_mlp_out")
        mlp.apply(lambda module: [p.zero_() for p in module.parameters()])
    torch.testing.assert_close(logits_of(session.module.model, tokens), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("use_bridge", [True, False])
def test_model_is_of_the_kind_asked_for_frozen_and_in_evaluation_mode(tmp_path: Path, use_bridge: bool) -> None:
    model = session_with(tmp_path, tl_cfg=no_processing(use_bridge=use_bridge)).module.model
    assert type(model).__name__ == ("TransformerBridge" if use_bridge else "HookedTransformer")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_bridge_without_processing_is_the_default(tmp_path: Path) -> None:
    session = session_with(tmp_path, "llama")
    assert isinstance(session.module.model, TransformerBridge)
    tokens, _ = unpadded_rows(session)[0]
    torch.testing.assert_close(
        logits_of(session.module.model, tokens), last_logits(plain_model("llama"), tokens).detach(), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use_bridge", [True, False])
def test_processing_keeps_log_probabilities_and_changes_activations(
    tmp_path: Path, kind: str, use_bridge: bool
) -> None:
    """Llama's unembedding is centered, and what GPT-2 writes to the residual stream."""
    session = session_with(tmp_path, kind, tl_cfg=ITLensFromPretrainedConfig(use_bridge=use_bridge))
    plain = plain_model(kind)
    rows = [tokens for tokens, _ in unpadded_rows(session)[:3]]
    batch = padded(rows, "left", session.datamodule.tokenizer.pad_token_id)
    with torch.no_grad():
        found_logits = session.module(**batch)[:, -1]
        wanted = torch.stack([last_logits(plain, row) for row in rows])
        _, cache = session.module.backend.run_with_cache(ModelInputs.from_batch(batch), [MLP_OUT])
        plain_written = []
        last_logits(plain, rows[0], [(MLP_OUT, lambda x: plain_written.append(x) or x)])
    written, plain_written = cache[MLP_OUT][0, -1:], plain_written[0][0, -1:]
    torch.testing.assert_close(found_logits.log_softmax(-1), wanted.log_softmax(-1), rtol=0, atol=1e-3)
    centered, plainly = (found_logits, wanted) if kind == "llama" else (written, plain_written)
    assert centered.mean(-1).abs().max() < 1e-4 < 1e-2 < plainly.mean(-1).abs().max()


@pytest.mark.parametrize("use_bridge", [True, False])
def test_names_of_hook_points_include_aliases(tmp_path: Path, use_bridge: bool) -> None:
    session = session_with(tmp_path, tl_cfg=no_processing(use_bridge=use_bridge))
    names = session.module.backend.hook_point_names()
    assert {"blocks.1.hook_resid_post", "blocks.1.attn.hook_z", "blocks.1.hook_mlp_out"} <= set(names)
    assert session.module.backend.vocab_size == len(VOCABULARY)


# ----------------------------------------------------------------------------------------------------------- refusals


class UnheardOfConfig(PretrainedConfig):
    """An architecture that nobody knows."""

    model_type = "unheard-of"


class UnheardOf(PreTrainedModel):
    """A model of that architecture."""

    config_class = UnheardOfConfig

    def __init__(self, config: UnheardOfConfig) -> None:
        super().__init__(config)
        self.embed = torch.nn.Embedding(len(VOCABULARY), 4)


def test_unknown_architectures_are_refused_with_a_way_out(tmp_path: Path) -> None:
    model = UnheardOf(UnheardOfConfig(architectures=["UnheardOf"], vocab_size=len(VOCABULARY)))
    with pytest.raises(ModelLoadError, match=r"cannot build a bridge for UnheardOf.*stack \('core',\) alone"):
        session_with(tmp_path, hf_model=model, init=False)


def test_a_configuration_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="tl_cfg is TLensGenerationConfig.*takes ITLensFromPretrainedConfig or"
    ):
        session_with(tmp_path, init=False, tl_cfg=TLensGenerationConfig())


# ---------------------------------------------------------------------------------------------- configuration and state


def test_a_configuration_alone_gives_random_weights(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=len(VOCABULARY), n_embd=16, n_layer=2, n_head=2, n_positions=64)
    session = session_with(tmp_path, hf_config=config)
    assert session.module.model.cfg.n_layers == 2


def global_state() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "random": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "environment": dict(os.environ),
        "threads": torch.get_num_threads(),
        "filters": list(warnings.filters),
    }


def test_making_a_session_changes_nothing_global_and_prints_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_nothing_global_changes(tmp_path, no_processing(use_bridge=True), capsys)


def check_nothing_global_changes(tmp_path: Path, tl_cfg: Any, capsys: pytest.CaptureFixture[str]) -> None:
    session_with(tmp_path, init=False)  # the folder is made, lazy imports are done
    capsys.readouterr()
    before = global_state()
    session_with(tmp_path, init=False, tl_cfg=tl_cfg)
    after = global_state()
    assert [name for name in before if before[name] != after[name]] == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("use_bridge", [True, False])
def test_the_data_modules_tokenizer_is_not_touched(tmp_path: Path, use_bridge: bool) -> None:
    cfg = ITLensFromPretrainedNoProcessingConfig(use_bridge=use_bridge, default_padding_side="right")
    session = session_with(tmp_path, tl_cfg=cfg)
    tokenizer = session.datamodule.tokenizer
    assert tokenizer.padding_side == "left"
    assert tokenizer("Ada sees")["input_ids"][0] == tokenizer.bos_token_id
    assert session.module.model.tokenizer is not tokenizer


@pytest.mark.parametrize("use_bridge", [True, False])
def test_a_second_session_does_not_change_the_first(tmp_path: Path, use_bridge: bool) -> None:
    first = session_with(tmp_path / "one", "gpt2")
    tokens, _ = unpadded_rows(first)[0]
    before = logits_of(first.module.model, tokens)
    make_session(tmp_path / "two", "llama", "core")
    session_with(tmp_path / "three", "llama", tl_cfg=no_processing(use_bridge=use_bridge))
    torch.testing.assert_close(logits_of(first.module.model, tokens), before, rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------- generation


@pytest.mark.parametrize("use_bridge", [True, False])
def test_generation_takes_the_arguments_of_its_configuration(tmp_path: Path, use_bridge: bool) -> None:
    session = session_with(tmp_path, tl_cfg=no_processing(use_bridge=use_bridge))
    rows = [tokens for tokens, _ in unpadded_rows(session)[:2]]
    batch = padded(rows, "right", session.datamodule.tokenizer.pad_token_id)
    result = session.module.it_generate(batch, **TLensGenerationConfig(max_new_tokens=3).generate_kwargs)
    assert [step.shape for step in result.logits] == [(2, len(VOCABULARY))] * 3
    assert isinstance(result.logits, tuple)
    assert session.module.standardize_logits(result.logits).shape == (2, 3, 2)
    assert result.sequences.shape == (2, batch["input_ids"].shape[1] + 3)
    sampling = TLensGenerationConfig(max_new_tokens=2, do_sample=True, temperature=0.7, top_k=5).generate_kwargs
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sampled = session.module.it_generate(batch, **sampling)
    for step, chosen in zip(sampled.logits, sampled.sequences[:, -2:].T, strict=True):
        assert all(token in row.topk(5).indices for token, row in zip(chosen, step, strict=True))


@pytest.mark.parametrize("use_bridge", [True, False])
def test_generation_ends_where_every_row_has_ended(tmp_path: Path, use_bridge: bool) -> None:
    model, eos = plain_model("gpt2"), VOCABULARY["<eos>"]
    with torch.no_grad():  # whatever the prompt, the end token comes next
        model.transformer.ln_f.weight.zero_()
        model.transformer.wte.weight[eos] = 9 * model.transformer.ln_f.bias
        wanted = last_logits(model, torch.tensor([0, 9, 12]))
    assert wanted.argmax() == eos
    session = session_with(tmp_path, hf_model=model, tl_cfg=no_processing(use_bridge=use_bridge))
    batch = padded([torch.tensor([0, 9, 12]), torch.tensor([0, 30])], "left", session.datamodule.tokenizer.pad_token_id)
    ended = session.module.it_generate(batch, max_new_tokens=4)
    assert ended.sequences[:, 3:].tolist() == [[eos], [eos]]
    assert len(ended.logits) == 1
    assert len(session.module.it_generate(batch).logits) == 1  # the configuration's defaults: one token, the likeliest
    went_on = session.module.it_generate(batch, max_new_tokens=4, stop_at_eos=False)
    assert went_on.sequences[:, 3:].tolist() == [[eos] * 4] * 2


def test_bloom_is_run_by_the_bridge_as_transformers_runs_it(tmp_path: Path) -> None:
    """An architecture without rotary or learned positions: its ALiBi bias comes from the mask."""
    config = BloomConfig(vocab_size=len(VOCABULARY), hidden_size=32, n_layer=2, n_head=4)
    session = session_with(tmp_path, hf_config=config)
    rows = [tokens for tokens, _ in unpadded_rows(session)[:2]]
    with torch.no_grad():
        logits = session.module(**padded(rows, "left", 0))[:, -1]
    for row, found in zip(rows, logits, strict=True):
        torch.testing.assert_close(found, logits_of(session.module.model, row), rtol=0, atol=1e-4)
