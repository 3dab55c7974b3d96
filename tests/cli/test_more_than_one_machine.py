"""The page on several processes, followed command by command, and what several processes leave to one."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from torch.distributed.run import config_from_args, parse_args

import interpretune as it
from interpretune.analysis import AnalysisRunner, QuestionCfg
from interpretune.analysis.question_run import EvidenceCfg
from interpretune.cli.main import main
from interpretune.models.loading import device_of
from interpretune.system.ranks import is_first_process, rank_and_processes
from tests.other_process import ROOT, run_ranks
from tests.question_sessions import session_of
from tests.sessions import write_rows
from tests.tiny import saved_tiny_model

PAGE = (ROOT / "docs" / "more-than-one-machine.md").read_text()
ROWS = [
    {
        "prompt": f"{name} sees the dog near the{' old' * (i % 3)}",
        "corrupted": f"{name} sees the cat near the{' old' * (i % 3)}",
        "answers": [" house", " tree"],
        "correct": i % 2,
    }
    for i, name in enumerate(("Ada", "Bo", "Cleo", "Dan", "Eve", "Finn", "Gus"))
]


def commands() -> list[str]:
    """What the page says to type, without the prompt."""
    return [line[2:] for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def typed(line: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a command; variables before it are set."""
    words = shlex.split(os.path.expandvars(line))
    with_values = [word for word in words[: words.index("interpretune")] if "=" in word]
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (word.split("=") for word in with_values):
        monkeypatch.setenv(name, value)
    return words[len(with_values) :]


def test_the_page_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``torchrun`` itself is left out: its options are read by its own parser, and its processes are forked."""
    model, *lines = commands()
    assert model.startswith("export MODEL=$(")
    monkeypatch.setenv("MODEL", str(saved_tiny_model("llama")))
    write_rows(tmp_path / "rows.jsonl", ROWS)
    job = re.search(r"```yaml job\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "job.yaml").write_text(job[1].replace("rows: agreement", f"rows: {tmp_path / 'rows.jsonl'}"))
    monkeypatch.chdir(tmp_path)
    told = {}
    for number, line in enumerate(lines):
        command = typed(line, monkeypatch)
        if command[0] == "torchrun":
            config, name, arguments = config_from_args(parse_args(command[1:]))
            assert (config.min_nodes, config.nproc_per_node, name) == (1, 2, "interpretune")
            folder, absolute = arguments.index("one"), arguments.index("job.yaml")
            arguments[folder], arguments[absolute] = str(tmp_path / "one"), str(tmp_path / "job.yaml")
            run_ranks(Path(__file__).with_name("run_here.py"), *arguments, INTERPRETUNE_CACHE=str(tmp_path / "cache"))
        else:
            assert main(command[1:]) == 0
        told[number] = capsys.readouterr()
    assert [shlex.split(line)[-1] for line in lines] == ["one", "one", "many", "many", "many"]
    assert "incomplete: other processes still run" in told[2].out
    monkeypatch.setenv("WORLD_SIZE", "2")
    options = {"shared_cfg.model_name_or_path": "x", "analyses.heads.value": "zero", "analyses.heads.circuit.pool": "2"}
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    assert main(["circuit", "job.yaml", *arguments]) == 1
    assert "a page is written by one process" in capsys.readouterr().err
    assert told[3].out == ""
    assert "not run again" in told[1].err
    assert "layers.2.attn_z head" in told[4].out
    one, many = (it.Effects.open(next((tmp_path / name).iterdir())) for name in ("one", "many"))
    assert one.store.manifest.key == many.store.manifest.key
    assert (one.store.manifest.world_size, one.store.complete) == (2, True)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert main([*typed(lines[-1], monkeypatch)[1:-1], "alone"]) == 0
    alone = it.Effects.open(next((tmp_path / "alone").iterdir()))
    for found in (one, many):
        assert_frame_equal(in_order(found), in_order(alone), rtol=0, atol=1e-6)


def in_order(effects: it.Effects) -> pd.DataFrame:
    found = effects.to_pandas()
    return found.sort_values(["row", "units", "unit"]).reset_index(drop=True)


def test_what_depends_on_all_rows_is_the_same_in_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(tmp_path, [it.PromptRow(**row) for row in ROWS])
    cfg = QuestionCfg(units="heads", budget=5, value="mean")
    alone = AnalysisRunner(**session, root=tmp_path / "alone").run({"a": cfg})["a"]
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        shared = AnalysisRunner(**session, root=tmp_path / "shared").run({"a": cfg})["a"]
        assert shared.complete == (rank == "0")
    assert_frame_equal(in_order(it.Effects(shared)), in_order(it.Effects(alone)), rtol=0, atol=1e-6)


def test_evidence_is_left_to_a_single_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [it.PromptRow(**row) for row in ROWS]
    session = session_of(tmp_path, rows[:4])
    asked = {"a": QuestionCfg(units={"heads": 1}, evidence=EvidenceCfg(held_out=rows[4:], top=1, cards=0, steer=0))}
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        runner = AnalysisRunner(**session, root=tmp_path / "stores")
        if rank == "0":  # the first tells
            with pytest.warns(UserWarning, match="'a' are gathered by one process, and 2 run here. Run the same again"):
                store = runner.run(asked)["a"]
        else:
            store = runner.run(asked)["a"]
    assert store.complete
    assert not store.tables
    monkeypatch.undo()
    assert AnalysisRunner(**session, root=tmp_path / "stores").run(asked)["a"].tables


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"RANK": "1"}, "has RANK=1, no WORLD_SIZE"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "has RANK=2, WORLD_SIZE=2"),
        ({"RANK": "${SLURM_PROCID}", "WORLD_SIZE": ""}, "has RANK=.*WORLD_SIZE=. Processes that share a run"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], told: str
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(it.ConfigurationError, match=f"The environment {told}"):
        rank_and_processes()


def test_empty_variables_are_as_if_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    assert rank_and_processes() == (0, 1)
    assert is_first_process()
    monkeypatch.setenv("RANK", "1")
    assert not is_first_process()


def test_each_process_of_a_machine_takes_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(device_of(it.ITConfig())) == "cuda"
    for rank in range(3):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert device_of(it.ITConfig()) == torch.device("cuda", rank % 2)
    assert device_of(it.ITConfig(device="cpu")) == torch.device("cpu")
