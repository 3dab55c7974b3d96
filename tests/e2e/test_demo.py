"""The demo on a tiny model: its file, its page, what it says where there is nothing to find, interruption."""

import json
from pathlib import Path

import pytest

from interpretune.cli.main import EXIT_INTERRUPTED, main
from interpretune.questions import Effects
from tests.other_process import run_script
from tests.tiny import nli_rows, save_tiny_model


@pytest.fixture
def tiny_demo(tmp_path):
    """Arguments of a demo on a tiny model and rows of its vocabulary."""
    model = save_tiny_model(tmp_path / "model", "llama")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in nli_rows(16)))
    return [
        *("demo", "--model", str(model), "--data", str(data), "--answers", "Yes", "No", "--layers", "0", "1"),
        *("--training-scale", "0.05", "--adapters", "sae_lens"),
        *("--analyses.model.evidence.cards", "1", "--analyses.latents.evidence.cards", "1"),
        *("--output", str(tmp_path / "out"), "--cache-dir", str(tmp_path / "cache")),
    ]


def test_a_random_model_has_nothing_to_find(tiny_demo, tmp_path, monkeypatch, capsys, no_more_training):
    """Interrupted, gone on with some rows, with all of them, and once more: what was trained is not trained again."""
    limited = [*tiny_demo, "--json", "--limit", "4"]
    with monkeypatch.context() as patch:

        def interrupt(*_args, **_kwargs):
            raise KeyboardInterrupt

        patch.setattr("interpretune.store.StoreWriter.write", interrupt)
        assert main(limited) == EXIT_INTERRUPTED
    assert not list((tmp_path / "cache").rglob("*.partial"))
    no_more_training()
    capsys.readouterr()

    assert main(limited) == 0
    told = json.loads(capsys.readouterr().out)
    assert [item["rows"] for item in told["analyses"]] == [4, 4]
    assert told["held_out"][0]["rows"] == 4

    assert main([*tiny_demo, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["found"] is False
    assert told["answer"][0].startswith("Nothing was found: ")
    page = Path(told["page"])
    assert page == tmp_path / "out" / "page.html"
    assert "Nothing was found" in page.read_text(encoding="utf-8")
    assert {item["name"]: item["rows"] for item in told["analyses"]} == {"model": 8, "latents": 8}
    assert told["held_out"][0]["rows"] == 8
    kinds = {item["kind"] for row in told["analyses"] for item in Effects.open(row["folder"]).question["units"]}
    assert kinds == {"latent", "head", "neuron"}

    assert main(tiny_demo) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) <= 40
    assert "Nothing was found: " in printed
    assert printed.count(str(page)) == 1


INTERRUPTED_IN_TRAINING = """
import os, signal, sys
from sae_lens import SAETrainer
from interpretune.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test that runs behind nohup has it ignored
step = SAETrainer.step
def interrupted_step(self, batch):
    if self.n_training_steps == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return step(self, batch)
SAETrainer.step = interrupted_step
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_from_a_terminal_ends_the_process_with_130(tiny_demo, tmp_path):
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED_IN_TRAINING)
    _, errors = run_script(script, *tiny_demo, returncode=EXIT_INTERRUPTED)
    assert "nothing is half-written" in errors
    assert not list((tmp_path / "cache").rglob("*.partial"))
    assert not list((tmp_path / "cache").rglob("sae_weights.safetensors"))
