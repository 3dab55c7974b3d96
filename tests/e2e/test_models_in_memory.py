"""One call with the model object of any library whose adapter is installed: the same effects of all kinds of units."""

from __future__ import annotations

import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import interpretune as it
from interpretune.testing.tiny_models import TINY_MODELS, tiny_tokenizer
from tests.questions.plain_loops import Coder
from tests.sessions import make_session

ROOT = Path(__file__).parents[2]
GROUP = "interpretune.backends"
FOLDERS = {"transformer_lens": "interpretune-tlens", "nnsight": "examples/interpretune-nnsight"}
OTHERS = {"bridge": "transformer_lens", "hooked": "transformer_lens", "nnsight": "nnsight"}
ROWS = [
    it.PromptRow("Ada sees the red dog", (" house", " tree in June"), 0, "Eve sees the old dog"),
    it.PromptRow("Bo likes", (" Max", " Nora", " Kit and Max"), 1, "Bo finds"),
]


def model_of(kind: str, backend: str, folder: Path) -> Any:
    plain = TINY_MODELS[kind]().eval()
    if backend == "nnsight":
        import nnsight

        return nnsight.NNsight(plain)
    return plain if backend == "core" else make_session(folder, kind, backend).module.model


@pytest.mark.parametrize(("backend", "kind"), [("bridge", "llama"), ("hooked", "gpt2"), ("nnsight", "llama")])
def test_effects_are_those_of_core(backend, kind, install, tmp_path):
    library = OTHERS[backend]
    pytest.importorskip("interpretune_nnsight" if library == "nnsight" else "interpretune_tlens")
    declared = tomllib.loads((ROOT / FOLDERS[library] / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]
    assert list(declared) == [library]
    install("declared", group=GROUP, entries=declared)
    sae, transcoder = (
        partial(Coder, dtype=torch.float32, use_error_term=True, skips_special_tokens=skips) for skips in (False, True)
    )
    units = [
        sae("sae", "layers.1.resid_post", "layers.1.resid_post"),
        transcoder("transcoder", "layers.0.mlp_in", "layers.0.mlp_out"),
        it.Neurons(1, [0, 7, 50]),
        it.Heads(0),
        *(it.Vector(f"layers.1.{part}") for part in ("attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post")),
    ]
    asked = {"units": units, "objective": it.LogitDiff("mean"), "value": "corrupted", "positions": "each"}
    one, other = (
        it.effects(model_of(kind, name, tmp_path / name), tiny_tokenizer(), ROWS, **asked).to_pandas()
        for name in ("core", backend)
    )
    names = ["row", "position", "units", "unit"]
    assert set(one.units) == set(other.units)
    assert smallest_of_largest(one, other, names) > 1e-3
    sae, transcoder, neurons, heads, *_ = units
    asked |= {"units": [transcoder, neurons, heads], "at": "each", "tolerance": 1e-3}
    one, other = (
        it.effects_on(model_of(kind, name, tmp_path / name), tiny_tokenizer(), ROWS, on=[sae, it.Heads(1)], **asked)
        for name in ("core", backend)
    )
    names += ["target_position", "target_units", "target_unit"]
    assert smallest_of_largest(one.to_pandas(), other.to_pandas(), names, left_out=1e-3) > 1e-3


def smallest_of_largest(one: pd.DataFrame, other: pd.DataFrame, names: list[str], left_out: float = 0) -> float:
    """The least among unit sets of the largest effect; both have the same effects, or one leaves a small one out."""
    joined = one.merge(other, on=names, how="outer", suffixes=("", "_other")).fillna(0)
    np.testing.assert_allclose(joined.effect_other, joined.effect, atol=1e-4 + left_out, rtol=1e-4)
    return joined.groupby("units").effect.apply(lambda effects: effects.abs().max()).min()
