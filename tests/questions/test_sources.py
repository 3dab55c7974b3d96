"""Rows from lists, frames, data sets, files and the hub are the same rows, and what is wrong is said with its place."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import datasets
import lazy_loader
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from interpretune.errors import DataError, InterpretuneError
from interpretune.questions import PromptRow, read_rows

pl = lazy_loader.load("polars")
ROWS = [
    PromptRow("The capital of France is", (" Paris", " Rome"), 0, "The capital of Italy is", {"place": "France"}),
    PromptRow("The capital of Perú is", (" Quito", " Lima"), 1, "The capital of Chile is", {"place": (15, 19)}),
]
FIELDS = [
    {
        "prompt": row.prompt,
        "answers": list(row.answers),
        "correct": row.correct,
        "corrupted": row.corrupted,
        "spans": {"place": row.spans["place"] if isinstance(row.spans["place"], str) else list(row.spans["place"])},
    }
    for row in ROWS
]
NO_SPANS = [{name: value for name, value in fields.items() if name != "spans"} for fields in FIELDS]
WITHOUT = [PromptRow(row.prompt, row.answers, row.correct, row.corrupted) for row in ROWS]


def csv_text(rows: list[dict[str, Any]]) -> str:
    frame = pd.DataFrame(
        [
            {k: v if isinstance(v, str | int) else json.dumps(v, ensure_ascii=False) for k, v in row.items()}
            for row in rows
        ]
    )
    return frame.to_csv(index=False)


def write(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("\ufeff" + "\r\n\n".join(json.dumps(row) for row in FIELDS), encoding="utf-8")
    elif kind == "csv":
        path.write_text("\ufeff" + csv_text(FIELDS), encoding="utf-8")
    elif kind == "parquet":
        pd.DataFrame(NO_SPANS).to_parquet(path)
    else:
        datasets.Dataset.from_list(NO_SPANS).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("as_text", [True, False])
def test_files_of_text_hold_whole_rows(tmp_path, kind, as_text):
    path = write(tmp_path, kind)
    assert read_rows(str(path) if as_text else path) == ROWS


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_files_of_tables_hold_rows(tmp_path, kind):
    assert read_rows(write(tmp_path, kind)) == WITHOUT


def test_lists_frames_and_data_sets_hold_rows():
    assert read_rows(FIELDS) == ROWS
    assert read_rows(ROWS) == ROWS
    assert read_rows(iter(FIELDS)) == ROWS
    assert read_rows(pd.DataFrame(FIELDS)) == ROWS
    for table in (pl.DataFrame(NO_SPANS), datasets.Dataset.from_list(NO_SPANS), pd.DataFrame(NO_SPANS)):
        assert read_rows(table) == WITHOUT
    assert read_rows(datasets.DatasetDict(a=datasets.Dataset.from_list(NO_SPANS)), split="a") == WITHOUT
    formatted = datasets.Dataset.from_list(NO_SPANS).with_format("numpy")
    assert read_rows(formatted) == WITHOUT


def test_missing_values_of_tables_are_no_values():
    spans = [{"place": "France"}, {"who": "Ada"}]
    rows = [
        {"prompt": "France Ada", "answers": ["a"], "corrupted": c, "spans": s}
        for c, s in zip(["x", None], spans, strict=True)
    ]
    wanted = [PromptRow("France Ada", ("a",), 0, c, s) for c, s in zip(["x", None], spans, strict=True)]
    for table in (rows, pd.DataFrame(rows), pl.DataFrame(rows), datasets.Dataset.from_list(rows)):
        assert read_rows(table) == wanted
    assert read_rows(pd.DataFrame(rows).astype({"corrupted": "string"})) == wanted


def test_texts_and_chats_are_prompts():
    chat = [{"role": "user", "content": "Is it so?"}]
    assert read_rows(["The key", chat], answers=(" is", " are"), correct=1) == [
        PromptRow("The key", (" is", " are"), 1),
        PromptRow(chat, (" is", " are"), 1),
    ]


@pytest.mark.parametrize(
    ("correct", "wanted"),
    [
        (1, [1, 1]),
        (" are", [1, 1]),
        ([0, 1], [0, 1]),
        ((" are", " is"), [1, 0]),
        (pd.Series([0, 1]), [0, 1]),
        ("label", [1, 0]),
        ("said", [0, 1]),
    ],
)
def test_the_correct_answer_by_index_text_or_column(correct, wanted):
    fields = [{"text": "a", "label": 1, "said": " is"}, {"text": "b", "label": 0, "said": " are"}]
    for rows in (fields, pd.DataFrame(fields), pl.DataFrame(fields)):
        found = read_rows(rows, prompt="text", answers=(" is", " are"), correct=correct)
        assert [row.correct for row in found] == wanted


def test_answers_for_all_rows_take_a_word_on_which_is_correct():
    texts, pair = ["The keys", "The key"], (" are", " is")
    for rows in (texts, [{"prompt": text} for text in texts], [PromptRow(text) for text in texts]):
        with pytest.raises(DataError, match=r"Row 0 does not say which of the answers \[' are', ' is'\]"):
            read_rows(rows, answers=pair)
        assert [row.correct for row in read_rows(rows, answers=pair, correct=[0, 1])] == [0, 1]
    one, alone = read_rows(texts[:1], answers=pair), read_rows(texts, answers=pair[:1])
    own = read_rows(texts, answers=[pair, pair[::-1]])
    assert [row.correct for row in (*one, *alone, *own)] == [0] * 5


def test_answers_that_are_given_replace_those_of_rows():
    rows = [PromptRow("a", (" is", " are"), 1, spans={"all": "a"})]
    assert read_rows(rows, answers=(" x", " y", " z")) == [PromptRow("a", (" x", " y", " z"), 1, spans={"all": "a"})]
    assert (
        read_rows(rows, correct=[0])
        == read_rows(rows, correct=" is")
        == [PromptRow("a", (" is", " are"), 0, spans={"all": "a"})]
    )
    assert read_rows(rows, answers="column") == rows
    with pytest.raises(DataError, match="Row 0: The correct answer ' no'"):
        read_rows(rows, correct=" no")


def test_answers_may_be_a_list_of_texts_a_row():
    rows = read_rows(["a", "b"], answers=[(" x", " y"), (" z",)], correct=[" y", " z"])
    assert [(row.answers, row.correct) for row in rows] == [((" x", " y"), 1), ((" z",), 0)]


def test_an_answer_that_is_a_number_goes_before_an_index(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,answers,correct\n1 +,"[""1"", ""0""]",0\n2 +,"[""7"", ""8""]",1\n')
    assert [row.correct for row in read_rows(path)] == [1, 1]


def test_the_hub_is_read_by_split(monkeypatch):
    asked = []

    def load_dataset(name: str, subset: str | None = None) -> datasets.DatasetDict:
        asked.append((name, subset))
        if (name, subset) != ("tasks/capitals", None):
            raise FileNotFoundError("no such data set")
        table = datasets.Dataset.from_list(NO_SPANS)
        return datasets.DatasetDict(train=table, test=table.select([1]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_rows("tasks/capitals", split="test") == WITHOUT[1:]
    assert asked == [("tasks", "capitals"), ("tasks/capitals", None)]
    with pytest.raises(DataError, match=r"tasks/capitals has the splits \['train', 'test'\]\. Choose one"):
        read_rows("tasks/capitals")
    with pytest.raises(DataError, match=r"splits \['train', 'test'\], not 'dev'"):
        read_rows("tasks/capitals", split="dev")


def test_a_hub_that_is_not_reached_is_told():
    with pytest.raises(DataError, match="'nobody/nothing' is neither a file nor a folder here"):
        read_rows("nobody/nothing")


FILES = [
    (
        "rows.csv",
        "prompt,answers\na,Paris|Rome\n",
        r'line 2: the cell \'answers\' .* JSON, such as \["Paris", "Rome"\]',
    ),
    ("rows.csv", "prompt,answers\na, b,c\n", r"line 2 has 3 cells, and the columns are .* Put quotation marks"),
    ("rows.csv", "prompt,answers\na\n", r"line 2 has 1 cells"),
    ("rows.csv", "", "does not begin with a line of different names"),
    ("rows.csv", "a,a\n", "does not begin with a line of different names"),
    ("rows.csv", "prompt,answers\n", "has no rows below"),
    ("rows.csv", 'prompt\n"a', "is no CSV: unexpected end"),
    ("rows.csv", 'prompt,answers\n,"[""a""]"\n', "line 2: The prompt of a row is None; give a text"),
    ("rows.jsonl", '{"prompt": "a", "answers": ["b"]}\n\n{"prompt": "a"}\n', r"jsonl, line 3 has no column 'answers'"),
    ("rows.jsonl", '{"prompt": "a"', "Line 1: "),
    ("rows.jsonl", '{"prompt": "a", "answers": "b"}', "line 1: The answers of the row 'a' are 'b'; give a list"),
    ("rows.jsonl", '{"prompt": 5, "answers": ["b"]}', "line 1: The prompt of a row is 5; give a text"),
    ("rows.parquet", "no table", "cannot be read as a Parquet file"),
]


@pytest.mark.parametrize(("name", "text", "message"), FILES)
def test_faults_in_files_are_told_with_the_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)


def test_a_column_that_is_named_must_be_in_the_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,answers,other\na,"[""b""]",\nc,"[""b""]",d\n')
    assert [row.corrupted for row in read_rows(path, corrupted="other")] == [None, "d"]
    with pytest.raises(DataError, match=r"line 2 has no column 'othr'; its columns are .*'other'"):
        read_rows(path, corrupted="othr")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (5, {}, "Rows cannot be read from 5"),
        ({"prompt": "a"}, {}, "Rows cannot be read from"),
        ([5], {}, "Row 0 is 5; give a text"),
        (["a"], {}, r"Row 0 has no column 'answers'; its columns are \['prompt'\]"),
        (["a"], {"answers": (" b",), "correct": " c"}, r"neither a column .* nor one of the answers \[' b'\]"),
        (["a"], {"answers": (" b",), "correct": 1}, "Row 0: The correct answer of the row 'a' is 1, which is"),
        (["a"], {"answers": (" b",), "correct": [0, 0]}, "2 values for 1 rows"),
        (["a"], {"answers": 5}, r"answers=... is 5; give the name of a column, texts"),
        (["a"], {"answers": (" b",), "corrupted": "other"}, "no column 'other'"),
        (["a"], {"answers": (" b",), "spans": "other"}, "no column 'other'"),
        (["a"], {"prompt": 3}, r"prompt=... takes the name of a column, not 3"),
        (["a"], {"split": "train"}, "A split is for files and data sets with splits, not for list"),
        (Path("no.csv"), {}, "no.csv does not exist"),
        (Path("no.csv"), {"split": "train"}, "no.csv is one file, which has no split 'train'"),
        (pd.DataFrame([["a", "b"]], columns=["x", "x"]), {}, "columns of the same name"),
    ],
)
def test_what_is_no_row_is_said(source, options, message):
    with pytest.raises(DataError, match=message):
        read_rows(source, **options)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | st.text("aé\ud800", max_size=3) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["prompt", "answers", "correct", "spans", "corrupted"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(ANYTHING.filter(lambda value: not isinstance(value, str)), st.just("answers") | ANYTHING, st.just(0) | ANYTHING)
def test_no_source_raises_a_bare_error(source, answers, correct):
    try:
        read_rows(source, answers=answers, correct=correct)
    except InterpretuneError:
        return


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["jsonl", "csv", "parquet"]),
    content=st.binary(max_size=40) | st.text(max_size=30).map(lambda text: text.encode()),
)
def test_no_file_raises_a_bare_error(tmp_path, kind, content):
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(content)
    with pytest.raises(DataError), warnings.catch_warnings():
        read_rows(path)
