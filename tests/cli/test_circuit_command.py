"""``interpretune circuit``: forty lines at most, a page, a dry run, and files without a circuit."""

from __future__ import annotations

import json

import pytest
import yaml

from interpretune.cli.main import main
from interpretune.testing import save_tiny_model

ANSWERS = [" house", " tree"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny_model("model", "llama")
    rows = {
        split: [{"prompt": text.format(name), "answers": ANSWERS, "correct": 0} for name in names]
        for split, text, names in (
            ("validation", "{} sees the red dog near the", ("Ada", "Bo", "Cleo")),
            ("test", "{} likes the old cat and the", ("Dan", "Eve", "Finn")),
        )
    }
    circuit = {"held_out": "test", "pool": 6, "draws": 1, "edges": 12, "shapley": 2, "pairs": 2}
    written = {
        "session": {
            "shared_cfg": {"model_name_or_path": "model"},
            "datamodule_cfg": {"rows": rows, "eval_batch_size": 4},
        },
        "analyses": {
            "model": {"units": ["heads", {"neurons": 2}], "split": "validation", "circuit": circuit},
            "clean": {"units": {"neurons": 0}, "objective": "log_prob", "split": "validation"},
            "on": {"units": {"heads": 0}, "targets": {"heads": 1}, "split": "validation"},
        },
        "runner": {"root": "stores"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(written))
    return tmp_path


def test_a_circuit_is_printed_and_its_page_is_written(here, capsys):
    assert main(["circuit", "run.yaml", "--limit", "4", "--dry-run"]) == 0
    assert "and a circuit (sufficient, faithfulness, methods, pairs, shapley, edges)" in capsys.readouterr().out
    assert not (here / "page.html").exists()
    assert main(["circuit", "run.yaml", "-o", "pages/circuit.html"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert 15 < len(printed) <= 40
    assert printed[-1].startswith("pages/circuit.html")
    assert any(line.startswith("The gradient is wrong in ") for line in printed)
    assert max(map(len, printed)) < 100
    text = (here / "pages" / "circuit.html").read_text()
    assert "Shapley values" in text
    assert "Total effects of layers.0.attn_z, set to zero, on layers.1.attn_z over 3 rows" in text
    assert "layers.2.attn_z head" in text
    assert main(["circuit", "run.yaml", "--json", "--verbose"]) == 0
    told = json.loads(capsys.readouterr().out)
    [circuit] = told["circuits"]
    assert circuit["edges"][0].keys() == {"source", "target", "effect", "low", "high", "size", "gradient"}
    assert len(circuit["nodes"]) == 12
    assert circuit["sentences"][0].startswith("Of the 6 top units, ")
    assert {item["name"] for item in told["analyses"]} == {"model", "clean", "on"}


def test_a_file_without_a_circuit_is_told_what_to_add(here, capsys):
    assert main(["circuit", "run.yaml", "--analyses.model.circuit", "null"]) == 1
    assert "Add one to an analysis with units, whose effects are exact: `circuit: {held_out: test}`" in (
        capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        main(["circuit", "run.yaml", "--analyses.model.circuit.pol", "3"])
    assert "Did you mean 'pool'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["circuit", "--limit", "4"])
    assert "Which CONFIG.yaml is it?" in capsys.readouterr().err


def test_a_run_that_fails_leaves_the_page_that_was_there(here):
    (here / "page.html").write_text("mine")
    (here / "model" / "config.json").write_text("{}")
    assert main(["circuit", "run.yaml"]) == 1
    assert main(["circuit", "run.yaml", "-o", "new/page.html"]) == 1
    assert (here / "page.html").read_text() == "mine"
    assert [*(here / "new").iterdir()] == []
