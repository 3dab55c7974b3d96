"""``interpretune hooks``: what a model offers, as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from interpretune.cli.hooks import HookPointRow, ModelHooks
from interpretune.cli.main import main
from tests.tiny import VOCABULARY


def listed(capsys, *arguments: str) -> dict:
    assert main(["hooks", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_place_of_a_decoder_is_listed_with_its_shape(capsys, llama_folder: Path):
    found = listed(capsys, str(llama_folder))
    rows = {row["name"]: row for row in found["hook_points"]}
    assert len(rows) == len(found["hook_points"]) == 1 + 3 * 8 + 2
    assert next(iter(rows)) == "embed"
    assert rows["layers.2.resid_mid"]["shape"] == ["batch", "pos", 32]
    assert rows["layers.2.resid_mid"]["aliases"] == ["blocks.2.hook_resid_mid"]
    assert rows["layers.0.attn_z"]["shape"] == ["batch", "pos", 32]
    assert rows["layers.1.mlp_act"]["shape"] == ["batch", "pos", 64]
    assert rows["logits"]["shape"] == ["batch", "pos", len(VOCABULARY)]
    assert found["adapters"] == ["core"]
    assert "model.layers.0.self_attn.q_proj:out" in found["own"]
    assert not set(rows) & set(found["own"])


def test_layers_that_are_alike_share_a_line(capsys, gpt2_folder: Path):
    assert main(["hooks", str(gpt2_folder)]) == 0
    out = capsys.readouterr().out
    assert "GPT2LMHeadModel in the stack core" in out
    (line,) = [line for line in out.splitlines() if "resid_mid" in line]
    assert line.split()[:4] == ["layers.{i}.resid_mid", "0-2", "blocks.{i}.hook_resid_mid", "[batch,"]
    assert "transformer.h.0.attn:out" not in out
    assert main(["hooks", str(gpt2_folder), "--all"]) == 0
    assert "transformer.h.0.attn:out" in capsys.readouterr().out


def test_layers_that_differ_do_not():
    def row(layer: int, width: int) -> HookPointRow:
        return HookPointRow(f"layers.{layer}.mlp_in", (f"blocks.{layer}.mlp.hook_in",), ("batch", "pos", width), "")

    hooks = ModelHooks("M", ("core",), (row(0, 8), row(1, 16), row(2, 8), row(3, 8)), ())
    assert [(line["i"], line["shape"]) for line in hooks.table()] == [
        ("0, 2-3", "[batch, pos, 8]"),
        ("1", "[batch, pos, 16]"),
    ]


def test_a_model_that_does_not_exist_is_refused(capsys, tmp_path: Path):
    assert main(["hooks", str(tmp_path / "nothing")]) == 1
    assert "no such folder exists" in capsys.readouterr().err
