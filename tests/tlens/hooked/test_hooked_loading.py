"""Hooked transformers out of Hugging Face models, or with random weights: wrong conversions are refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from interpretune import ModelLoadError
from interpretune_tlens import ITLensCustomConfig
from interpretune_tlens.hooked import loading
from tests.sessions import padded, unpadded_rows
from tests.tiny import VOCABULARY
from tests.tlens.test_loading import (
    KINDS,
    UnheardOf,
    UnheardOfConfig,
    check_nothing_global_changes,
    logits_of,
    no_processing,
    session_with,
)

CUSTOM = {"n_layers": 2, "d_model": 16, "n_ctx": 128, "d_head": 8, "n_heads": 2, "d_vocab": len(VOCABULARY)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversion_with_a_wrong_weight_is_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = loading.get_pretrained_state_dict

    def convert_wrongly(*args: Any, **kwargs: Any) -> Any:
        weights = convert(*args, **kwargs)
        weights["blocks.1.mlp.W_out"] = weights["blocks.1.mlp.W_out"] * 1.05
        return weights

    monkeypatch.setattr(loading, "get_pretrained_state_dict", convert_wrongly)
    with pytest.raises(ModelLoadError, match=r"differs from it by .* nats .* Use use_bridge=True"):
        session_with(tmp_path, kind, tl_cfg=no_processing(use_bridge=False))


def test_a_conversion_with_a_wrong_setting_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = loading.get_pretrained_model_config

    def read_wrongly(*args: Any, **kwargs: Any) -> Any:
        cfg = read(*args, **kwargs)
        cfg.rotary_base = 500.0
        return cfg

    monkeypatch.setattr(loading, "get_pretrained_model_config", read_wrongly)
    with pytest.raises(ModelLoadError, match="differs from it by"):
        session_with(tmp_path, "llama", tl_cfg=no_processing(use_bridge=False))


def test_weights_that_do_not_fit_are_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = loading.get_pretrained_state_dict

    def cut(*args: Any, **kwargs: Any) -> Any:
        weights = read(*args, **kwargs)
        weights["blocks.0.mlp.W_in"] = weights["blocks.0.mlp.W_in"][:, :-1]
        return weights

    monkeypatch.setattr(loading, "get_pretrained_state_dict", cut)
    with pytest.raises(ModelLoadError, match="HookedTransformer cannot convert GPT2LMHeadModel: RuntimeError"):
        session_with(tmp_path, tl_cfg=no_processing(use_bridge=False))


@pytest.mark.parametrize("as_dict", [True, False])
def test_custom_configuration_gives_a_random_model_that_its_seed_fixes(tmp_path: Path, as_dict: bool) -> None:
    settings = {**CUSTOM, "act_fn": "relu"}
    cfg = settings if as_dict else HookedTransformerConfig(**settings)
    sessions = [
        session_with(tmp_path, tl_cfg=ITLensCustomConfig(cfg=copy.deepcopy(cfg)), seed=seed) for seed in (3, 3, 4)
    ]
    first, same, other = (session.module.model for session in sessions)
    assert isinstance(first, HookedTransformer)
    assert first.cfg.d_model == 16
    assert torch.equal(first.W_E, same.W_E)
    assert not torch.equal(first.W_E, other.W_E)
    rows = [tokens for tokens, _ in unpadded_rows(sessions[0])[:2]]
    with torch.no_grad():
        logits = sessions[0].module(**padded(rows, "left", 0))[:, -1]
    torch.testing.assert_close(logits[1], logits_of(first, rows[1]), rtol=0, atol=1e-4)


def test_unknown_architectures_are_refused_with_a_way_out(tmp_path: Path) -> None:
    model = UnheardOf(UnheardOfConfig(architectures=["UnheardOf"], vocab_size=len(VOCABULARY)))
    with pytest.raises(ModelLoadError, match=r"(?s)HookedTransformer cannot convert UnheardOf.*use_bridge=True"):
        session_with(tmp_path, hf_model=model, init=False, tl_cfg=no_processing(use_bridge=False))


@pytest.mark.parametrize(
    "tl_cfg",
    [no_processing(use_bridge=False), ITLensCustomConfig(cfg={**CUSTOM, "act_fn": "relu"})],
    ids=["converted", "custom"],
)
def test_making_a_session_changes_nothing_global_and_prints_nothing(
    tmp_path: Path, tl_cfg: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    check_nothing_global_changes(tmp_path, tl_cfg, capsys)
