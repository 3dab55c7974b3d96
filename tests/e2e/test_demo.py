"""The demo from its command line, on a tiny model; ``make soak-demo`` runs it on the real one."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from interpretune.analysis import AnalysisCache
from interpretune.cli.main import EXIT_ERROR, EXIT_INTERRUPTED, main
from tests.other_process import run_script
from tests.tiny import nli_rows, save_tiny_model

MODES = ("clean_no_sae", "clean_w_sae", "attr_patching", "ablation")


@pytest.fixture
def tiny_demo(tmp_path):
    """Arguments of a demo on a tiny model and rows of its vocabulary."""
    model = save_tiny_model(tmp_path / "model", "llama")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in nli_rows(10)))
    return [
        *("demo", "--json", "--model", str(model), "--data", str(data), "--answers", "Yes", "No"),
        *("--layers", "0", "1", "--training-scale", "0.05", "--ablation-rows", "4"),
        *("--output", str(tmp_path / "out"), "--cache-dir", str(tmp_path / "cache")),
    ]


def test_the_demo_writes_what_it_finds_and_trains_nothing_again(tiny_demo, tmp_path, capsys, no_more_training):
    assert main(tiny_demo) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["rows"], summary["ablated_rows"]) == (10, 4)
    assert [row["mode"] for row in summary["correct"]] == list(MODES)
    assert len(summary["quality"]) == len(summary["ablation_attribution_pearson"]) == 2
    assert summary["peak_memory_mib"] > 100
    for mode in MODES:
        examples = pq.read_table(Path(summary["analyses"][mode]) / "shards")
        assert examples.num_rows == (4 if mode == "ablation" else 10)
        assert Path(summary["analyses"][mode]).parent == tmp_path / "out" / "analyses"
    stored = AnalysisCache.of(summary["analyses"]["ablation"]).to_tables()["latents"]
    effects = stored["effects"].to_numpy()[stored["activations"].to_numpy() > 0]
    assert len(effects) == summary["ablation_cost"]["ablations"] > 0
    assert summary["ablation_cost"]["loop_forwards"] >= summary["ablation_cost"]["alive_latents"]
    assert summary["ablation_cost"]["replayed"] is True
    assert abs(effects).max() > 1e-3
    assert len(list((tmp_path / "out" / "figures").glob("*.html"))) == 3
    assert "Top positive ablation effects" in printed.err
    check_effects_towards_yes(summary, printed.err)
    no_more_training()
    assert main([*tiny_demo, "--towards", "No"]) == 0
    printed = capsys.readouterr()
    assert "Effects towards 'No'" in printed.err
    assert (tmp_path / "out" / "figures" / "ablation-effects-towards-no.html").exists()
    second = json.loads(printed.out)
    for name in ("correct", "quality", "ablation_attribution_pearson", "analyses"):
        assert second[name] == summary[name]
    assert (summary["ablation_cost"]["replayed"], second["ablation_cost"]["replayed"]) == (True, False)


def check_effects_towards_yes(summary, printed):
    """Effects are reported towards the first answer too, and how often each answer is given by label."""
    for title in ("Effects towards the correct answer", "Effects towards 'Yes'", "Answers given in clean_w_sae"):
        assert title in printed
    cache = AnalysisCache.of(summary["analyses"]["ablation"])
    found = [row for row in summary["largest_effects"] if row["analysis"] == "ablation" and row["towards"] == "'Yes'"]
    assert len(found) == 6
    labels = torch.cat(cache.orig_labels)
    for row in found:
        effects = torch.cat([batch[row["latent_model"]].dense()[:, row["latent"]] for batch in cache.effects]).double()
        wanted = torch.where(labels == 0, effects, -effects).sum().item()
        assert row["total_effect"] == pytest.approx(wanted, abs=1e-9)
    rows = {(row["mode"], row["correct answer"]): row for row in summary["answers"]}
    every = rows["clean_w_sae", "all"]
    assert every["rows"] == every["answered 'Yes'"] + every["answered 'No'"] == summary["rows"]
    right = rows["clean_w_sae", "'Yes'"]["answered 'Yes'"] + rows["clean_w_sae", "'No'"]["answered 'No'"]
    assert right == next(row["correct"] for row in summary["correct"] if row["mode"] == "clean_w_sae")


def test_an_answer_that_is_not_there_is_refused_at_once(tiny_demo, tmp_path, capsys):
    assert main([*tiny_demo, "--towards", "Perhaps"]) == EXIT_ERROR
    assert "towards='Perhaps' is no answer" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_ctrl_c_leaves_no_half_written_store(tiny_demo, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:

        def interrupt(*_args, **_kwargs):
            raise KeyboardInterrupt

        patch.setattr("interpretune.store.StoreWriter.write", interrupt)
        assert main(tiny_demo) == EXIT_INTERRUPTED
    assert not list((tmp_path / "cache").rglob("*.partial"))
    assert main(tiny_demo) == 0


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
