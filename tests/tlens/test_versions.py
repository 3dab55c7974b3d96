"""What TransformerLens 4 has removed is refused with its version and what to do; names on the hub are as they were."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from interpretune import ModelLoadError
from interpretune_tlens import ITLensCustomConfig, ITLensFromPretrainedNoProcessingConfig, loading
from tests.sessions import make_session


@pytest.mark.parametrize(
    ("tl_cfg", "way_out"),
    [
        (ITLensFromPretrainedNoProcessingConfig(use_bridge=False), "Write use_bridge=True"),
        (ITLensCustomConfig(cfg={"n_layers": 1}), "name an architecture of transformers in hf_config"),
    ],
    ids=["converted", "custom"],
)
def test_without_hooked_transformers_they_are_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tl_cfg: Any, way_out: str
) -> None:
    find = importlib.util.find_spec
    gone = lambda name, *given: None if name == "transformer_lens.HookedTransformer" else find(name, *given)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", gone)
    monkeypatch.setattr(loading, "load_hf_model", lambda _: 1 / 0)
    with pytest.raises(ModelLoadError) as caught:
        make_session(tmp_path, adapters=("transformer_lens",), init=False, tl_cfg=tl_cfg)
    installed = importlib.metadata.version("transformer-lens")
    for part in (
        "No HookedTransformer",
        installed,
        "4.0 has removed",
        way_out,
        'pip install "transformer-lens>=3.9,<4"',
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "on_the_hub"),
    [("gpt2-small", "gpt2"), ("GPT2", "gpt2"), ("pythia-70m", "EleutherAI/pythia-70m"), ("acme/own", "acme/own")],
)
def test_names_of_transformer_lens_are_resolved(name: str, on_the_hub: str) -> None:
    assert loading._hub_name(name) == on_the_hub
