"""Rows of a question in a session: answers of their own, corrupted prompts and spans, beside tokens and in batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from pandas.testing import assert_frame_equal
from torch import Tensor
from torch.nn import functional

import interpretune as it
from interpretune.analysis import AnalysisCfg, AnalysisMode, AnalysisRunner, QuestionCfg, run_analysis
from interpretune.questions import read_rows
from interpretune.session.question_rows import read_question_rows
from tests.question_sessions import ROWS, session_of
from tests.sessions import make_session


def logits_alone(session: it.ITSession) -> list[Tensor]:
    """Logits of the answers of each row, from its prompt alone, its tokens written out by hand."""
    tokenizer, found = session.datamodule.tokenizer, []
    texts = ["Ada sees the red dog near the", "Bo likes a boat and", "Question : the small cat was Answer :", "He has"]
    for row, text in zip(ROWS, texts, strict=True):
        special = not isinstance(row.prompt, list)
        tokens = torch.tensor([tokenizer(text, add_special_tokens=special)["input_ids"]])
        ids = [tokenizer(answer, add_special_tokens=False)["input_ids"][0] for answer in row.answers]
        found.append(session.module.model(input_ids=tokens).logits[0, -1, ids].detach())
    return found


@pytest.mark.parametrize("side", ["left", "right"])
def test_steps_count_each_row_among_its_own_answers(tmp_path, side):
    session = session_of(tmp_path, ROWS, side=side)
    metrics = it.test(**session, loop_cfg=it.LoopConfig(progress=False)).metrics
    alone = logits_alone(session)
    losses = [functional.cross_entropy(item, torch.tensor(row.correct)) for item, row in zip(alone, ROWS, strict=True)]
    assert metrics["test_loss"] == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)
    right = [int(item.argmax()) == row.correct for item, row in zip(alone, ROWS, strict=True)]
    assert metrics["test_accuracy"] == pytest.approx(sum(right) / len(ROWS))
    effects = it.effects(
        session.module.backend,
        session.datamodule.tokenizer,
        session.datamodule.rows(),
        units=it.Heads(1),
        objective=it.LogitDiff(against="mean"),
    )
    differences = [
        float(item[row.correct] - item[[i for i in range(len(item)) if i != row.correct]].mean())
        for item, row in zip(alone, ROWS, strict=True)
    ]
    assert effects.rows().objective.tolist() == pytest.approx(differences, abs=1e-5)
    assert effects.share_correct == pytest.approx(metrics["test_accuracy"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_have_what_rows_have_and_models_do_not_see_it(tmp_path, side):
    session = session_of(tmp_path, ROWS, side=side)
    tokenizer = session.datamodule.tokenizer
    batch = next(iter(session.datamodule.test_dataloader()))

    def words(tokens: Tensor) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))

    spans = {
        name: [words(batch["input_ids"][i, first:end]) for i, (first, end) in enumerate(batch[f"span_tokens.{name}"])]
        for name in ("who", "thing")
    }
    assert spans == {"who": ["Ada", "Bo", ""], "thing": ["", "boat", ""]}
    assert words(batch["corrupted_tokens"][0]) == ROWS[0].corrupted
    assert batch["corrupted_tokens"][1:].eq(-1).all()
    answers = session.module.answer_tokens(batch)
    assert [[words(token) for token in row if token >= 0] for row in answers] == [
        [answer.strip() for answer in row.answers] for row in ROWS[:3]
    ]
    ids, labels = session.module.labels_to_ids(batch.pop("labels"), answers)
    assert [words(token) for token in ids] == ["house", "Nora", "red"]
    logits = session.module.standardize_logits(session.module(**batch).logits, answers)[:, -1]
    assert logits.isinf().tolist() == [[False, False, True], [False, False, False], [False, False, True]]
    assert labels.tolist() == [0, 1, 0]
    assert session.datamodule.rows() == ROWS


def test_prepared_data_are_found_by_the_content_of_rows(tmp_path):
    plain: list[dict[str, Any]] = [
        {"prompt": "He has", "answers": [" bread", " stone"], "correct": 0, "corrupted": "Ada has"},
        {"prompt": "Bo likes a boat and", "answers": [" Max", " Kit", " Nora"], "correct": 1},
    ]
    plain[0]["spans"] = {"who": "He"}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in plain))
    rows = read_rows(plain)

    def path(rows: Any, **options: Any) -> Path:
        return Path(session_of(tmp_path, rows, **options).datamodule.itdm_cfg.dataset_path)

    same = {path(rows), path(str(file)), path({"validation": datasets.Dataset.from_list(plain)})}
    assert len(same) == 1
    changes = [{"answers": [" bread", " hat"]}, {"corrupted": "Eve has"}, {"spans": {"who": "has"}}, {"correct": 1}]
    others = {path([{**plain[0], **changed}, plain[1]]) for changed in changes}
    others |= {path(rows, limit_rows=1), path({"test": rows})}
    assert len(others | same) == len(changes) + 3


def test_answers_of_all_rows_make_a_session_as_before(tmp_path):
    old = make_session(tmp_path / "old")
    split = old.datamodule.dataset["validation"]
    prompts = [old.datamodule.tokenizer.decode(tokens[1:]) for tokens in split["input_ids"]]
    new = it.ITSession(
        it.ITSessionConfig(
            adapter_ctx=("core",),
            shared_cfg=old.session_cfg.shared_cfg,
            datamodule_cfg=it.ITDataModuleConfig(
                rows=prompts, answers=["Yes", "No"], correct=list(split["labels"]), eval_batch_size=3
            ),
            module_cfg=it.ITConfig(device="cpu"),
        )
    )
    it.it_init(**new)
    caches = []
    for session in (old, new):
        cfg = AnalysisCfg(mode=AnalysisMode.clean_no_sae)
        caches.append(run_analysis(**session, analysis_cfg=cfg))
    for name in ("orig_labels", "labels", "preds", "logit_diffs"):
        first, second = (torch.cat(list(getattr(cache, name))) for cache in caches)
        assert torch.equal(first, second)
    assert caches[1].answers == caches[0].answers == ("Yes", "No")


def test_answers_of_several_tokens_are_for_questions(tmp_path):
    rows = [it.PromptRow("He has", (" red bread", " red hat"), 1), *ROWS[:1]]
    session = session_of(tmp_path, rows)
    with pytest.raises(it.DataError, match="Row 0 .*several tokens.*question"):
        run_analysis(**session, analysis_cfg=AnalysisCfg(mode=AnalysisMode.clean_no_sae))
    assert session.datamodule.rows() == rows


def test_rows_without_answers_are_for_kl_and_loss(tmp_path):
    rows = [it.PromptRow("He has"), it.PromptRow("Ada sees the red dog near the", (" house", " tree"))]
    session = session_of(tmp_path, rows)
    assert session.datamodule.rows() == rows
    runner = AnalysisRunner(**session, root=tmp_path / "stores")
    asked = {name: QuestionCfg(units="heads", objective=name, positions="each") for name in ("kl", "loss")}
    for name, store in runner.run(asked).items():
        found = it.effects(
            session.module.model, session.datamodule.tokenizer, rows, units=it.Heads(), objective=name, positions="each"
        )
        assert_frame_equal(it.Effects(store).to_pandas(), found.to_pandas(), rtol=1e-5, atol=1e-6)
    with pytest.raises(it.DataError, match="Row 0 has no answers, and prob is of them. Give some, or ask kl or loss"):
        runner.run({"prob": QuestionCfg(units="heads", objective="prob")})
    for use in (lambda: runner.run({"clean": AnalysisCfg(objective="kl")}), lambda: it.test(**session)):
        with pytest.raises(
            it.DataError, match=r"Row 0 of the batch has no answers.*kl or loss with a question: it.eff"
        ):
            use()


def test_a_task_has_rows_to_train_on_and_rows_held_out():
    rows = read_question_rows(it.ITDataModuleConfig(rows="agreement", limit_rows=4))
    task = it.tasks.find_task("agreement")
    assert rows == {"train": task.training(4), "validation": task.held_out(4)}
    assert read_question_rows(it.ITDataModuleConfig(rows={"test": "agreement"}))["test"] == task.held_out()


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (["He has"], {}, "split 'validation': Row 0 has no column 'answers'"),
        ({"train": ROWS, "test": []}, {}, "no rows for the split 'test'"),
        ({"train": [it.PromptRow("He has", ("Xylophone", " hat"))]}, {}, "split 'train': Row 0, 'He has'.*'Xylophone'"),
        ("nowhere.jsonl", {}, "nowhere.jsonl does not exist"),
        (3, {}, "Rows cannot be read from 3"),
        (ROWS, {"max_length": 4}, "Row 0.*the most is 4"),
        (ROWS, {"text_fields": ("premise",)}, "rows is given beside text_fields"),
    ],
)
def test_rows_that_cannot_be_used_are_told(tmp_path, rows, options, words):
    with pytest.raises(it.InterpretuneError, match=words):
        session_of(tmp_path, rows, **options)


def test_answers_are_said_once(tmp_path):
    with pytest.raises(it.ConfigurationError, match="Leave one of the two out"):
        session_of(tmp_path, ROWS, answers=("Yes", "No"))
    with pytest.raises(it.DataError, match="prepared from text fields"):
        make_session(tmp_path / "old").datamodule.rows()
    differ = session_of(tmp_path, ROWS)
    with pytest.raises(it.ConfigurationError, match=r"answers differ by row, answer_tokens\(batch\)"):
        _ = differ.module.answer_token_ids
