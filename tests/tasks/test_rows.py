"""Rows of the tasks of the package: balance, words, corrupted prompts, spans."""

from __future__ import annotations

import re
from collections import Counter

import datasets
import pytest

import interpretune as it
from interpretune.questions import PromptRow
from interpretune.tasks import Task, find_task
from interpretune.tasks.templates import words_of

WRITTEN = ("agreement", "ioi", "greater_than", "capitals")
"""Tasks that are made of templates and words."""
PARTS = ("training", "held_out")
SPANS = {
    "agreement": {"subject", "preposition", "attractor"},
    "ioi": {"io", "s1", "s2", "place", "object"},
    "greater_than": {"event", "year", "century"},
    "capitals": {"country"},
}


ONE_TOKEN = set(
    "are is No Yes Alice Anna Brian Claire Diana Emma Frank George Helen Henry Julia Kevin Laura Linda Maria Mark "
    "Oscar Paul Peter Robert Sarah Simon Susan Victor Athens Baghdad Beijing Berlin Brussels Budapest Cairo "
    "Cardiff Copenhagen Damascus Dublin Edinburgh Havana Helsinki Kabul Lima Lisbon London Madrid Moscow Oslo "
    "Ottawa Paris Rome Santiago Stockholm Tehran Tokyo Vienna Warsaw".split()
)
"""Words that are one token each after a space in SmolLM2's vocabulary, as ``tests/tasks/real_model.py`` holds."""


def rows_of(name: str, part: str) -> list[PromptRow]:
    return getattr(find_task(name), part)()


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def words_in_spans(row: PromptRow, names: set[str]) -> set[str]:
    return {row.prompt[slice(*row.spans[name])] for name in names}


each = pytest.mark.parametrize("part", PARTS)
each_written = pytest.mark.parametrize("name", WRITTEN)


@each
@pytest.mark.parametrize("name", [*WRITTEN, "entailment"])
def test_answers_are_balanced(name, part):
    rows = rows_of(name, part)
    assert len(rows) >= 60
    counts = Counter(row.correct for row in rows)
    assert set(counts) == {0, 1}
    assert abs(counts[0] - counts[1]) <= (0 if name in WRITTEN else len(rows) / 10)


@each
@pytest.mark.parametrize("name", ["agreement", "ioi", "capitals", "entailment"])
def test_answers_are_single_tokens_of_a_real_model(name, part):
    answers = {answer for row in rows_of(name, part) for answer in row.answers}
    assert answers <= {f" {word}" for word in ONE_TOKEN}


@each
@each_written
def test_no_row_occurs_twice(name, part):
    rows = rows_of(name, part)
    assert len({(row.prompt, frozenset(row.answers)) for row in rows}) == len(rows)


@each
@each_written
def test_one_word_of_a_prompt_is_corrupted(name, part):
    for row in rows_of(name, part):
        here, there = words(row.prompt), words(row.corrupted)
        assert len(here) == len(there)
        assert sum(a != b for a, b in zip(here, there, strict=True)) == 1


@each
@each_written
def test_spans_are_words_of_the_prompt(name, part):
    for row in rows_of(name, part):
        assert row.spans.keys() == SPANS[name]
        assert words_in_spans(row, SPANS[name]) <= {*words(row.prompt), "next to", "in front of"}
        for first, last in row.spans.values():
            assert row.prompt[first - 1] == " "
            assert not row.prompt[last : last + 1].isalnum()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("agreement", {"subject", "attractor"}),
        ("ioi", {"io", "s1", "place", "object"}),
        ("greater_than", {"event", "century"}),
        ("capitals", {"country"}),
    ],
)
def test_held_out_rows_have_words_of_their_own(name, content):
    def stems(part: str) -> set[str]:
        return {word.removesuffix("s") for row in rows_of(name, part) for word in words_in_spans(row, content)}

    def everything(part: str) -> set[str]:
        return {
            word.removesuffix("s") for row in rows_of(name, part) for word in words(f"{row.prompt} {row.corrupted}")
        }

    assert not stems("training") & everything("held_out")
    assert not stems("held_out") & everything("training")


def test_agreement_crosses_numbers_of_both_nouns():
    for part, subjects in (("training", 24), ("held_out", 12)):
        nouns = words_of("agreement", part)
        assert len(set(nouns["subjects"])) == len(nouns["subjects"]) >= subjects
        numbers = Counter(
            (row.prompt[slice(*row.spans["subject"])].endswith("s"), row.prompt.endswith("s"), row.correct)
            for row in rows_of("agreement", part)
        )
        assert {key[:2] for key in numbers} == {(True, True), (True, False), (False, True), (False, False)}
        assert len(numbers) == 4
        assert len(set(numbers.values())) == 1
        assert all(plural == (correct == 0) for plural, _, correct in numbers)


def test_agreement_corrupts_the_number_of_the_subject():
    for row in rows_of("agreement", "training"):
        first, last = row.spans["subject"]
        subject = row.prompt[first:last]
        other = subject.removesuffix("s") if row.correct == 0 else f"{subject}s"
        assert row.corrupted == f"The {other}{row.prompt[last:]}"


def test_the_indirect_object_is_named_once():
    orders = Counter()
    for row in rows_of("ioi", "held_out"):
        io, subject, again = (row.prompt[slice(*row.spans[name])] for name in ("io", "s1", "s2"))
        assert subject == again
        assert words(row.prompt).count(io) == 1
        assert row.answers[row.correct] == f" {io}"
        assert set(row.answers) == {f" {io}", f" {subject}"}
        assert words(row.corrupted).count(subject) == words(row.corrupted).count(io) == 1
        orders[row.spans["io"] < row.spans["s1"], row.correct] += 1
    assert len(set(orders.values())) == 1
    assert len(orders) == 4


def test_years_of_answers_lie_on_either_side():
    for part in PARTS:
        for row in rows_of("greater_than", part):
            year = row.prompt[slice(*row.spans["year"])]
            century = row.prompt[slice(*row.spans["century"])]
            later, earlier = row.answers[row.correct], row.answers[1 - row.correct]
            assert year.startswith(century)
            assert row.prompt.endswith(century)
            assert len(later) == len(earlier) == 2
            assert int(earlier) < int(year[2:]) < int(later)
            assert int(later) - int(year[2:]) == int(year[2:]) - int(earlier)
            assert later[0] != earlier[0]
            assert f"{century}01" in row.corrupted


def test_capitals_are_those_of_both_countries():
    for part in PARTS:
        capitals = words_of("capitals", part)["capitals"]
        for row in rows_of("capitals", part):
            [country] = words_in_spans(row, {"country"})
            [other] = set(words(row.corrupted)) - set(words(row.prompt))
            assert row.answers[row.correct] == f" {capitals[country]}"
            assert row.answers[1 - row.correct] == f" {capitals[other]}"


def test_shipped_rows_ask_what_the_label_answers():
    row = find_task("entailment").make("held_out").__next__()
    assert row.prompt.startswith("Text: When the storm reached Dunmarrow Bay on Tuesday")
    assert row.prompt.endswith("port during the storm\nThe claim is supported by the text (Yes/No):")
    assert row.answers[row.correct] == " Yes"


@each
@pytest.mark.parametrize("name", [*WRITTEN, "entailment"])
def test_rows_depend_on_the_seed_alone(name, part):
    drawn = getattr(find_task(name), part)
    assert drawn(12) == drawn(12) == drawn()[:12]
    assert drawn(12, seed=1) != drawn(12)
    assert Counter(row.prompt for row in drawn(seed=1)) == Counter(row.prompt for row in drawn())
    assert [row.correct for row in drawn(6)] == [0, 1] * 3


def test_more_rows_than_there_are_is_refused():
    for n in (0, 73):
        with pytest.raises(it.DataError, match=rf"The task 'capitals' has 72 rows of held_out; {n} are asked for"):
            find_task("capitals").held_out(n)


def test_rows_that_cannot_be_made_are_told_of():
    with pytest.raises(it.DataError, match=r"rows of training of the task 'odd' cannot be made: ZeroDivisionError"):
        Task("odd", "It fails.", lambda part: [1 / 0]).training()
    with pytest.raises(it.DataError, match=r"The task 'odd' makes a str where a PromptRow is expected"):
        Task("odd", "It makes texts.", lambda part: ["a"]).training()


def test_rows_of_the_hub_are_those_of_their_splits(monkeypatch):
    asked = []

    def load(path: str, subset: str | None, split: str) -> datasets.Dataset:
        asked.append((path, subset, split))
        rte = {"premise": ["A cat sat. "], "hypothesis": ["It sat."], "label": [1]}
        boolq = {"passage": ["Cats sit."], "question": ["do cats sit"], "answer": [True]}
        return datasets.Dataset.from_dict(rte if subset else boolq)

    monkeypatch.setattr(datasets, "load_dataset", load)
    [row] = find_task("rte").training()
    assert row.prompt == "Text: A cat sat.\nClaim: It sat\nThe claim is supported by the text (Yes/No):"
    assert row.answers[row.correct] == " No"
    assert row.prompt[slice(*row.spans["hypothesis"])] == "It sat"
    [row] = find_task("boolq").held_out()
    assert row.prompt == "Text: Cats sit.\nQuestion: do cats sit?\nThe answer to the question is (Yes/No):"
    assert row.answers[row.correct] == " Yes"
    assert asked == [("super_glue", "rte", "train"), ("boolq", None, "validation")]


def test_without_the_hub_an_error_says_what_to_do():
    with pytest.raises(it.DataError, match=r"super_glue/rte cannot .* `datasets.load_dataset\('super_glue', 'rte'\)`"):
        find_task("rte").training()
