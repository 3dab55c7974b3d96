"""What a dry run says of memory, and how many rows run at a time where blocks lie on several devices."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import interpretune as it
from interpretune.analysis import AnalysisRunner, QuestionCfg
from interpretune.analysis.memory_estimate import MemoryEstimate, MemoryWatch, slots_of
from interpretune.memory.peak import peak_memory
from interpretune.replay import budgets
from tests.question_sessions import session_of
from tests.tiny_architectures import backend_of, batch_of, make_model

CPU = torch.device("cpu")
BLOCK = 1 << 28


def test_the_peak_of_a_block_is_seen_although_it_is_free_at_the_end():
    with peak_memory([CPU]) as found:
        held = torch.zeros(BLOCK // 4)
        while found.peak[CPU] < BLOCK // 2:  # until the watcher has come by
            held += 1
        del held
    assert BLOCK // 2 < found.peak[CPU] < 2 * BLOCK


def test_what_a_batch_takes_grows_with_its_slots(monkeypatch):
    watch = MemoryWatch(model := make_model("llama"))
    with watch.first_batch():
        pass
    watch._peak[CPU] = 1000
    [found] = watch.estimates([20, 50, 30])
    assert (found.device, found.batch) == ("cpu", 2500)
    assert found.weights == sum(item.nbytes for item in (*model.parameters(), *model.buffers()))
    assert found.needed == found.taken + 2500
    assert slots_of({"input_ids": torch.zeros(3, 7), "labels": torch.zeros(3), "mask": torch.zeros(3, 7)}, 3) == 21


def test_a_batch_that_does_not_fit_is_told():
    few = MemoryEstimate("cuda:1", weights=10**9, taken=2 * 10**9, batch=3 * 10**9, free=10**9)
    needed, rest = str(few).split(", and ")
    assert needed == "about 5.0 GB of memory on cuda:1 (1.0 GB of weights, 3.0 GB for the largest batch)"
    assert rest == "1.0 GB are free: set a smaller eval_batch_size or a row_budget"


def test_a_dry_run_estimates_memory_of_modes_and_questions(tmp_path: Path):
    rows = [it.PromptRow(f"Ada sees the{' old' * i} dog near the", (" house", " tree")) for i in (0, 0, 0, 5)]
    session = session_of(tmp_path, rows)
    asked = {"clean": "clean_no_sae", "heads": QuestionCfg(units={"heads": 1})}
    told = AnalysisRunner(**session, root=tmp_path / "stores").dry_run(asked)
    weights = sum(item.nbytes for item in session.module.model.parameters())
    for name, run in told.items():
        [found] = run.memory
        assert found.device == "cpu", name
        assert weights <= found.weights < 2 * weights, name
        assert found.needed >= found.taken > found.weights, name  # memory that was free before does not show
        assert "of weights, " in str(run).splitlines()[-1], name


@pytest.mark.parametrize(("device", "least"), [("cuda:1", 1e6), ("cpu", 1e5)])
def test_rows_fit_where_there_is_least(monkeypatch, device, least):
    """No CUDA is needed to say where blocks run: hooks of accelerate name a device."""
    model = make_model("llama")
    prefill = backend_of(model).prefill(batch_of((4, 6), "left"), [], self_check=False)
    for number, block in enumerate(model.model.layers):
        for part in block.modules():
            part._hf_hook = SimpleNamespace(execution_device=f"cuda:{number % 2}")
    free = {"cpu": 1e9, "cuda:0": 1e9, "cuda:1": 1e9, device: least}
    monkeypatch.setattr(budgets, "MOST_ROWS", 10**9)
    monkeypatch.setattr(budgets, "free_bytes", lambda device: int(free[str(device)]))
    found = budgets.replay_budget(prefill, torch.tensor([3, 4]))
    monkeypatch.setattr(budgets, "free_bytes", lambda _: int(least))
    assert found == budgets.replay_budget(prefill, torch.tensor([3, 4]))
    monkeypatch.setattr(budgets, "free_bytes", lambda _: 10**9)
    assert found < budgets.replay_budget(prefill, torch.tensor([3, 4]))
