"""``make bench-circuits`` on a tiny model: all its parts run, and agree with their plain loops."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import circuits, command, judged
from interpretune.questions import PromptRow
from interpretune.testing.tiny_models import nli_rows, save_tiny_model, write_rows


class TinyTask:
    """Rows in words of the tiny tokenizer."""

    @staticmethod
    def _rows(names: str, noun: str) -> list[PromptRow]:
        return [
            PromptRow(f"{name} sees the {noun} near the", (" house", " tree"), i % 2, f"{name} sees the coat near the")
            for i, name in enumerate(names.split())
        ]

    def held_out(self, n: int) -> list[PromptRow]:
        return self._rows("Ada Bo Cleo Dan", "dog")[:n]

    def training(self, n: int) -> list[PromptRow]:
        return self._rows("Eve Finn Gus Hana", "cat")[:n]


def test_the_benchmark_of_circuits_runs_and_agrees_with_its_loops(tmp_path, monkeypatch, capsys):
    model, data = save_tiny_model(tmp_path / "tiny", "llama"), write_rows(tmp_path / "rows.jsonl", nli_rows(16))
    for module in (command, circuits):
        monkeypatch.setattr(module, "OUT", tmp_path)
    for module in (circuits, judged):
        monkeypatch.setattr(module, "find_task", lambda name: TinyTask())
    monkeypatch.setattr(judged, "_first_tokens", lambda tokenizer, rows: list(rows))  # whose tokenizer has no spaces
    monkeypatch.setattr(circuits, "LINES", 4)
    monkeypatch.setattr(circuits, "STRONGEST", 4)
    given = {
        "model": model,
        "data": data,
        "dtype": "float64",
        "threads": torch.get_num_threads(),
        "width": 32,
        "alive": 8,
    }
    given |= {
        "sample": 1,
        "turns": 1,
        "rows": 4,
        "tasks": "agreement",
        "layer": 1,
        "component-rows": 1,
        "graph-rows": 1,
    }
    given |= {"graph-layers": 2, "graph-prompts": 8, "graph-steps": 5, "graph-width": 16, "graph-alive": 4}
    options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["bench", "--sites", "layers.0.resid_post", "layers.1.resid_post", *options])
    circuits.main()
    [found] = json.loads((tmp_path / "circuits.json").read_text())
    for part in circuits.MEASURED:
        assert found[part]["max_abs_error"] < 1e-9
        assert found[part]["max_effect"] > 1e-3
        assert found[part]["ratio"] > 0
    assert {line["units"] for line in found["methods"]} == {
        "heads",
        "components, patched",
        "latents of two dictionaries",
        "latents of transcoders of the last 2 layers",
        "neurons of layer 1",
    }
    exact = [line["rank_correlation"] for line in found["methods"] if line["method"] == "exact"]
    assert exact == pytest.approx([1.0] * 5)
    shown = capsys.readouterr().out
    assert all(title in shown for title in (*circuits.COSTS.values(), *judged.COLUMNS.values()))
