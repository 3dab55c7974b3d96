"""The page about a question: what it says, which stores it refuses; how it looks in a browser is in another file."""

from __future__ import annotations

import json
import re
from html import unescape

import numpy as np
import pytest
from attrs import evolve

import interpretune as it
from interpretune.cli.main import main
from interpretune.cli.report import WrittenReport
from interpretune.errors import OutputError, StoreError
from interpretune.evidence import Evidence
from interpretune.evidence.intervals import ratios_over_rows
from interpretune.questions.result import Effects
from interpretune.reports.page.answer import answer, widened
from interpretune.reports.page.html_page import Page, write_page
from interpretune.reports.page.ranking import _apart
from tests.reports.effect_stores import (
    ROWS,
    SIZES,
    STRONG,
    card,
    change,
    continuation,
    held_out,
    numbers,
    write_effects,
)
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.tiny_results import RandomResults


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return [write_effects(folder / method, method=method) for method in ("gradient", "exact")]


def found_by(folder, proof, **options):
    return Page.of([write_effects(folder, evidence=Evidence(proof), **options)]).answer


def test_the_ranking_is_that_of_the_numbers(stores):
    ranking = Page.of(stores).ranking
    effects, activations = (np.concatenate(list(of.values()), axis=1) for of in numbers().values())
    order = np.argsort(-np.abs(effects).mean(0), kind="stable")
    names = [f"coder latent {i}" for i in range(SIZES["coder"])]
    names += [f"layers.1.attn_z head {i}" for i in range(SIZES["layers.1.attn_z"])]
    assert [item.name for item in ranking.units] == [names[i] for i in order]
    top = ranking.units[0]
    assert (top.unit, top.sure, ranking.compared) == (STRONG, True, 34)
    assert not any(item.sure for item in ranking.units[1:])
    error = effects[:, STRONG].std(ddof=1) / ROWS**0.5
    assert top.high - top.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    for item, i in zip(ranking.units, order, strict=True):
        assert item.mean == pytest.approx(effects[:, i].mean())
        assert item.approximate == pytest.approx(0.9 * effects[:, i].mean())
        assert item.by_answer == pytest.approx([effects[::2, i].mean(), effects[1::2, i].mean()])
        assert item.share_active == (activations[:, i] > 0).mean()
    assert ranking.correlation == pytest.approx(1)


def test_noise_of_thousands_of_units_is_not_told_apart_from_0():
    noise = ratios_over_rows(np.random.default_rng(0).normal(size=(6, 4000)), np.ones(6))
    assert not _apart(noise, 6, 4.37).any()  # the quantile of a normal for 4,000 units
    assert _apart(ratios_over_rows(np.linspace(0.9, 1.1, 12)[:, None], np.ones(12)), 12, 4.37).all()


def test_what_was_found_is_said_with_its_numbers(tmp_path):
    found = found_by(tmp_path / "exact", held_out())
    assert found.found
    text = str(found).replace("\u00a0", " ")
    assert f"coder latent {STRONG} has the only effect" in text
    assert "38 of 40 rows (95 %, 95 % interval 83 to 99 %; chance is 50 %)" in text
    assert "2 logits on average, 1.9 logits with the dictionaries spliced in" in text
    assert (
        "the 2 units set to ablated turn 60 % (95 % interval 46 to 73 %) of the right answers wrong, against 5 %"
        in text
    )


@pytest.mark.parametrize(
    ("sure", "headline", "sentence"),
    [
        ({0, 1}, "have the largest effects of 34 units", "the largest effects have"),
        (
            {1, 2},
            "have the largest effects that are told apart from 0 of 34",
            "the largest effects that are told apart",
        ),
        ({2}, "has the only effect that is told apart from 0, of 34", "the largest effects that are told apart"),
    ],
)
def test_effects_below_unsure_ones_are_not_called_largest(stores, sure, headline, sentence):
    page = Page.of(stores)
    units = tuple(evolve(item, sure=i in sure) for i, item in enumerate(page.ranking.units))
    found = answer(page.stores.results[0].question, page.rows, evolve(page.ranking, units=units), [])
    assert headline in found.headline
    assert sentence in str(found)


def test_a_unit_for_one_answer_is_told_by_answers(tmp_path):
    told = str(found_by(tmp_path / "exact", held_out(), turned=True))
    assert re.search(
        r"coder latent 7 \(0\.\d+ logits where “are” is right, \u22120\.\d+ logits where “is” is right\)", told
    )


@pytest.mark.parametrize(
    ("options", "proof", "reason"),
    [
        ({"wrong": 20}, held_out(), "no better than chance"),
        ({"strength": 0.0}, None, "no effect of 34 units is told apart from 0"),
        ({}, held_out(ablated=0.2, control=0.15), "not told apart from others drawn at random"),
        ({}, held_out(ablated=1.0, control=0.0, rows=2), "not told apart from others drawn at random"),
    ],
)
def test_it_says_that_nothing_was_found(tmp_path, options, proof, reason):
    found = found_by(tmp_path / "exact", proof, **options)
    assert not found.found
    assert found.headline.startswith("Nothing was found")
    assert reason in str(found)


def test_units_that_are_sure_together_alone_are_told_so(tmp_path):
    found = found_by(tmp_path / "exact", held_out(), strength=0.0)
    assert found.headline == "The 2 top units together change the answer; none alone is told apart from 0."
    assert "none has an effect that is told apart from 0 by intervals that are widened for as many units" in str(found)
    assert not found_by(tmp_path / "wrong", held_out(), strength=0.0, wrong=20).found


def test_a_random_model_finds_nothing(tmp_path):
    words = ("dog", "boat", "lamp", "house", "cat", "tree", "park", "bread")
    rows = [it.PromptRow(f"the red {word} was", (" old", " blue"), i % 2) for i, word in enumerate(words)]
    result = it.effects(tiny_llama().eval(), tiny_tokenizer(), rows[:4], units=it.Heads(0), store=tmp_path / "effects")
    found = it.evidence_of(result, held_out=rows[4:], top=1, cards=1, steer=1, new_tokens=2)
    text = result.report(tmp_path / "new" / "page.html").read_text()
    assert "Nothing was found" in text
    for told in (found.held_out.changes[0].told, found.cards[0].name, "LlamaForCausalLM", "SHA-256"):
        assert told in text


def test_one_change_is_judged_whatever_the_others_do(tmp_path):
    judged = [change("ablated", 0.1), change("ablated", 0.1, control=True)]
    best = [change("corrupted", 1.0), change("corrupted", 0.0, control=True), change("added", 1.0)]
    proof = evolve(held_out(), changes=tuple(judged + best))
    assert not found_by(tmp_path / "ablated", proof).found
    assert found_by(tmp_path / "corrupted", evolve(proof, judged="corrupted")).found


def test_intervals_of_few_rows_are_wide():
    few = widened(evolve(held_out(), changes=(change("ablated", 1.0, among=2), change("ablated", 0.0, control=True))))
    assert few.changes[0].low == pytest.approx(0.342, abs=1e-3)  # Wilson's of 2 of 2


def test_each_store_shows_its_own_evidence(tmp_path):
    stores = []
    for value, share in (("zero", 0.6), ("mean", 0.1)):
        shown = Evidence(held_out(share), (card(f"token {value}"),), (continuation(f"text {value}"),))
        strength = 0.5 if value == "zero" else 0.4
        stores.append(write_effects(tmp_path / value, question={"value": value}, evidence=shown, strength=strength))
    for given in (stores, stores[::-1]):
        page = Page.of(given)
        text = page.html(tmp_path / "page.html")
        assert page.answer.found  # by the proof of the store whose unit leads, wherever it stands
        strong = f"coder latent {STRONG} set to"
        assert page.answer.headline.startswith(f"{strong} zero and {strong} its mean have")
        assert len(page.answer.sentences) == 4
        for value, told in (("zero", "zero"), ("mean", "its mean")):
            [row] = [row for row in text.split("<tr") if f"{strong} {told}</a>" in row]
            assert f"<q>token {value}</q>" in row
            [anchor] = re.findall('href="#(card-[0-9]+)"', row)
            body = text[text.index(f'id="{anchor}"') :].split("</details>")[0]
            assert f"<q>token {value}</q>" in body
            assert f"text {value}" in text


def test_one_row_has_no_interval(tmp_path):
    rows = [it.PromptRow("the red dog was", (" old", " blue"), 0)]
    result = it.effects(tiny_llama().eval(), tiny_tokenizer(), rows, units=it.Heads(0), store=tmp_path / "effects")
    [shown] = it.evidence_of(result, cards=1, steer=0).cards
    page = Page.of([result])
    for item in (page.ranking.units[0], shown):
        assert np.isnan([item.low, item.high]).all()
    assert page.html(tmp_path / "page.html").count("no interval") >= len(page.ranking.units) + 1


def test_manifests_are_shown_whole_and_line_by_line(tmp_path):
    store = write_effects(tmp_path / "exact", about={"notes": [f"note {i}" for i in range(400)]})
    shown = re.search(r'class="manifest">.*?</pre>', Page.of([store]).html(tmp_path / "page.html"), re.DOTALL)
    assert shown is not None
    assert "note 399" in shown[0]
    assert "↵" not in shown[0]


def test_other_analyses_say_how_faithful_dictionaries_are(stores, tmp_path):
    other = RandomResults(0)
    other.cache.write(tmp_path / "mode", {"analysis": "clean_w_sae"})
    shown = Page.of([*stores, tmp_path / "mode"]).origin.faithfulness
    assert [item.name for item in shown] == ["the model as it is", "with the dictionaries spliced in", "clean_w_sae"]
    assert [item.mean for item in shown] == pytest.approx([2, 1.9, other.logit_diffs.mean()], rel=1e-5)
    assert shown[2].correct == (other.labels == other.predictions).mean()


def refused(tmp_path, case):
    one = write_effects(tmp_path / "exact")
    if case == "not finished":
        return [write_effects(tmp_path / "cut", batches=2)]
    if case == "the data of the first is 40 rows":
        return [one, write_effects(tmp_path / "other", method="gradient", about={"data": {"fingerprint": "cd"}})]
    if case == "the model of the first is owner/Tiny":
        return [one, write_effects(tmp_path / "other", method="gradient", about={"model": {"sha256": "00"}})]
    if case == "have both effects of coder":
        return [one, write_effects(tmp_path / "other")]
    return [one, write_effects(tmp_path / "other", method="gradient", question={"value": "mean"})]


@pytest.mark.parametrize(
    "case",
    [
        "not finished",
        "the data of the first is 40 rows",
        "the model of the first is owner/Tiny",
        "have both effects of coder",
        "no exact ones of these",
    ],
)
def test_stores_that_make_no_page_are_refused(tmp_path, case):
    with pytest.raises(StoreError, match=case):
        write_page(refused(tmp_path, case), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_page_needs_effects_and_says_what_writes_them(tmp_path):
    question = {"method": "lens"}
    lens = write_effects(tmp_path / "lens", question=question)
    with pytest.raises(StoreError, match="holds results of the method lens.*it.effects.*`units`"):
        write_page([lens], tmp_path / "page.html")
    bare = Page.of([write_effects(tmp_path / "bare")]).html(tmp_path / "page.html")
    assert "no cards of these units: `it.evidence_of(effects, cards=10)` gathers them" in bare


@pytest.mark.parametrize(
    "forged",
    [
        {"about": {"versions": ["torch"]}},
        {"question": {"value": [1]}},
        {"question": {"units": [{"name": "coder", "kind": "latent", "size": 2**40, "chosen": 1}]}},
        {"question": {"units": [{"name": "coder", "kind": "latent", "size": 30, "chosen": 30}]}},
        {"question": {"units": ["coder"]}},
    ],
)
def test_forged_manifests_are_refused(tmp_path, forged):
    with pytest.raises(StoreError, match="was not written by a question|more units|does not name"):
        write_page([write_effects(tmp_path / "forged", **forged)], tmp_path / "page.html")


def test_a_folder_is_no_page(stores, tmp_path):
    with pytest.raises(OutputError, match="is a folder"):
        Effects.open(stores[1]).report(tmp_path)


def test_cards_are_left_out_where_a_page_grows_large(tmp_path, monkeypatch):
    monkeypatch.setattr("interpretune.reports.page.html_page.MOST_BYTES", 100_000)
    cards = tuple(evolve(card("long" * 300), unit=i) for i in range(12))
    page = Page.of([write_effects(tmp_path / "exact", evidence=Evidence(cards=cards))])
    written = page.write(tmp_path / "page.html")
    assert written.stat().st_size < 100_000
    text = written.read_text()
    assert "more cards are left out" in text
    assert {*re.findall(r'href="#(card-\d+)"', text)} == {*re.findall(r'id="(card-\d+)"', text)}


def test_the_terminal_gets_forty_lines(stores, tmp_path):
    shown = Evidence(held_out(), (card(),), (continuation(),))
    page = Page.of([write_effects(tmp_path / "exact", evidence=shown), stores[0]])
    report = WrittenReport(page, page.write(tmp_path / "page.html"))
    short, long = report.text(), report.text(verbose=True)
    assert len(short.splitlines()) <= 40 < len(long.splitlines())
    for text in (short, long):
        assert page.answer.headline in " ".join(text.split("\n"))
        assert f"{page.ranking.units[1].name} " in text
        assert str(report.path) in text.splitlines()[-1]


def test_the_command_writes_a_page_and_says_what_it_shows(stores, tmp_path, capsys):
    path = tmp_path / "mailed.html"
    assert main(["report", *map(str, stores), "-o", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["page"], told["bytes"]) == (str(path), path.stat().st_size)
    assert told["ranking"][0]["name"] == f"coder latent {STRONG}"
    again = re.search(r'class="command">(.*?)<', path.read_text())
    assert again is not None
    assert again[1].startswith("interpretune report ../")
    assert main(["report", str(tmp_path / "absent")]) == 1
    assert "is no store" in capsys.readouterr().err


def test_it_shows_what_made_the_results(tmp_path):
    written = {"analyses": {"</pre><script>x": {"units": "heads"}}, "session": {"adapter_ctx": ["core"]}}
    made_by = {"command": "interpretune run agreement.yaml", "configuration": written}
    store = write_effects(tmp_path / "exact", about={"made_by": made_by})
    text = Page.of([store]).html(tmp_path / "page.html")
    shown = text.partition("Make the results again")[2].partition("Make this page again")[0]
    assert '<pre class="command">interpretune run agreement.yaml</pre>' in shown
    assert "session:\n  adapter_ctx: [core]\nanalyses:\n" in shown
    assert "&lt;/pre&gt;&lt;script&gt;x" in shown
    called = write_effects(tmp_path / "called", about={"made_by": {"call": "it.effects(model, units=Heads())"}})
    assert "it.effects(model, units=Heads())" in Page.of([called]).html(tmp_path / "page.html")
    forged = write_effects(tmp_path / "forged", about={"made_by": "me"})
    with pytest.raises(StoreError, match="the made_by of its manifest"):
        Page.of([forged])


def test_evidence_in_a_notebook_shows_its_cards():
    attack = '"><script>x</script>'
    shown = Evidence(held_out(), (card(attack, name=f"coder {attack}"),), (continuation(attack),))._repr_html_()
    assert "<script" not in shown
    assert held_out().changes[0].told in shown
    frame = re.search(r'<iframe sandbox="[^"]*" srcdoc="([^"]*)"', shown)
    assert frame is not None
    page = unescape(frame[1])
    assert "<script" not in page
    assert "&lt;script&gt;x" in page
    assert page.count("<svg") == 2
    assert Evidence()._repr_html_() == "No evidence was gathered."


def test_printed_evidence_is_short_tables():
    found = Evidence(held_out(), (card("a"), card("b", name="coder latent 8")), (continuation("went\x1b[2J on"),))
    shown = str(found)
    assert shown.startswith(f"{held_out().rows} held-out rows\n")
    for told in (held_out().changes[0].told, "coder latent 8", "Continued with"):
        assert told in shown
    assert "\x1b" not in shown
    assert len(shown.splitlines()) < 30
    assert str(Evidence()) == "No evidence was gathered."
