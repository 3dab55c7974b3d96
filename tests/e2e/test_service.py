"""The code of the page on services and workers gives the numbers of the plain model, also to several at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import interpretune as it
from tests.sessions import write_rows
from tests.tiny import saved_tiny_model, tiny_gpt2, tiny_tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "service.md"
ANSWERS = [" Yes", " No"]
ROWS = [{"prompt": prompt, "answers": ANSWERS} for prompt in ("the cat", "a dog sat", "the", "a", "the dog")]


def code(info: str) -> str:
    [found] = re.findall(rf"^```python {info}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return found


def plain_logits(prompt: str, *, without_mlp: bool = False) -> list[float]:
    """Of the answers, by the model of transformers; without the output of the first block's MLP if asked."""
    model, tokenizer = tiny_gpt2().eval(), tiny_tokenizer()
    if without_mlp:
        model.transformer.h[0].mlp.register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    ids = [tokenizer.encode(answer, add_special_tokens=False)[0] for answer in ANSWERS]
    with torch.no_grad():
        return model(torch.tensor([tokenizer.encode(prompt)])).logits[0, -1, ids].tolist()


def test_requests_at_once_get_the_numbers_of_the_plain_model(tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    namespace: dict[str, Any] = {"__name__": "service"}
    exec(compile(code("service"), str(PAGE), "exec"), namespace)
    app = namespace["make_app"](
        it.ITSessionConfig(
            adapter_ctx=("core",),
            shared_cfg=it.ITSharedConfig(tokenizer=tiny_tokenizer(), cache_dir=tmp_path / "cache"),
            datamodule_cfg=it.ITDataModuleConfig(rows=ROWS, correct=0),
            module_cfg=it.ITConfig(hf_model=tiny_gpt2(), device="cpu"),
        )
    )
    edit = {"at": "layers.0.mlp_out", "factor": 0.0}
    expected = {
        (row["prompt"], edited): plain_logits(row["prompt"], without_mlp=edited)
        for row in ROWS
        for edited in (False, True)
    }
    assert expected["the cat", True] != pytest.approx(expected["the cat", False], abs=1e-3)
    with TestClient(app) as client, ThreadPoolExecutor(4) as threads:

        def ask(case: tuple[str, bool]) -> list[float]:
            prompt, edited = case
            answer = client.post("/logits", json={"prompt": prompt, "answers": ANSWERS, **(edit if edited else {})})
            assert answer.status_code == 200, answer.text
            return list(answer.json().values())

        for found, wanted in zip(threads.map(ask, [*expected] * 3), [*expected.values()] * 3, strict=True):
            assert found == pytest.approx(wanted, abs=1e-4)
        refused = client.post("/logits", json={"prompt": "the", "answers": ANSWERS, "at": "layers.9.mlp_out"})
        assert refused.status_code == 422
        assert "layers.9.mlp_out" in refused.json()["detail"]
        session = app.state.session
        assert session.module.initialised
    assert not session.module.initialised


def test_workers_get_the_numbers_of_the_plain_model(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(code("tasks"))
    (tmp_path / "sweep.py").write_text(code("workers"))
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    done = subprocess.run(
        [sys.executable, tmp_path / "sweep.py", saved_tiny_model("gpt2"), rows],
        env={**os.environ, "INTERPRETUNE_CACHE": str(tmp_path / "cache"), "JOBLIB_TEMP_FOLDER": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    differences = [yes - no for yes, no in (plain_logits(row["prompt"]) for row in ROWS)]
    means = [sum(differences[:count]) / count for count in (2, 4, 5)]
    assert [float(word) for word in done.stdout.split()[-3:]] == pytest.approx(means, abs=1e-4)
