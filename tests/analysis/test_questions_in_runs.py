"""Questions among the analyses of a run: numbers of ``effects``, hooks, stores that go on, and units in words."""

from __future__ import annotations

from html import escape
from typing import Any

import pytest
from pandas.testing import assert_frame_equal

import interpretune as it
from interpretune.analysis import AnalysisRunner, EvidenceCfg, QuestionCfg, write_page
from interpretune.plugins.stack import build_context
from interpretune.questions import Effects, Latents, LogitLens
from interpretune.store.writer import StoreWriter
from interpretune.testing.tiny_models import tiny_llama
from tests.question_sessions import ROWS, session_of
from tests.tiny_latents import RandomDictionary

NOTER = """
record = []

@it.hookimpl
def it_open_analysis(self, analysis):
    self.record.append(("open", analysis.name, analysis.store, analysis.error))

@it.hookimpl
def it_close_analysis(self, analysis):
    store = analysis.store
    self.record.append(("close", analysis.name, store.folder == analysis.folder, store.complete, analysis.error))
"""
ALIKE = [it.PromptRow(row.prompt, (" house", " tree"), row.correct % 2, row.corrupted) for row in (ROWS[0], ROWS[3])]


@pytest.fixture
def dictionary() -> RandomDictionary:
    return RandomDictionary("layers.1.resid_post", seed=1)


def test_a_question_in_a_run_gives_the_numbers_of_effects(tmp_path, dictionary):
    rows = [*ROWS, it.PromptRow("Ada sees", (" Max", " Nora and Kit"), 1)]
    settings = {"latent_models": [dictionary.double()], "hf_model": tiny_llama().double().eval()}
    session = session_of(tmp_path, {"test": rows, "train": ROWS[:2]}, **settings)
    against = {"logit_diff": {"against": "max"}}
    asked = {
        "neurons": QuestionCfg(
            units=[{"neurons": [0, 2], "only": [1, 5]}, {"vector": "layers.1.mlp_out"}, "heads"], objective=against
        ),
        "latents": QuestionCfg(
            units={"latents": dictionary.name}, objective="log_prob", value="mean", mean_over="train", budget=9
        ),
    }
    stores = AnalysisRunner(**session, root=tmp_path / "stores").run(asked)
    units = [it.Neurons(0, [1, 5]), it.Neurons(2, [1, 5]), it.Vector("layers.1.mlp_out"), it.Heads()]
    model, tokenizer = session.module.model, session.datamodule.tokenizer
    alone = {
        "neurons": it.effects(model, tokenizer, rows, units=units, objective=against, batch_size=3),
        "latents": it.effects(
            model,
            tokenizer,
            rows,
            units=Latents(dictionary),
            objective="log_prob",
            value="mean",
            mean_over=ROWS[:2],
            budget=9,
            batch_size=3,
        ),
    }
    assert list(stores) == list(asked)
    for name, store in stores.items():
        found = Effects(store)
        assert store.manifest.about["analysis"] == name
        assert len(found.to_pandas()) > 0
        assert_frame_equal(found.to_pandas(), alone[name].to_pandas(), rtol=0, atol=1e-10)
        assert_frame_equal(found.rows(), alone[name].rows(), rtol=0, atol=1e-10)


def test_hooks_see_a_question_begin_and_end_and_a_run_goes_on(tmp_path, adapter_of, monkeypatch):
    adapter_of("noter", body=NOTER)
    session = session_of(tmp_path, ALIKE, adapters=("core", "noter"), eval_batch_size=1)
    record: list[Any] = build_context(("noter",)).adapters[-1].plugin.record
    cfgs: dict[str, Any] = {"clean": "clean_no_sae", "heads": QuestionCfg(units="heads", batch_size=1)}
    runner = AnalysisRunner(**session, root=tmp_path / "stores")
    told = runner.dry_run(cfgs)
    assert list(told) == ["clean", "heads"]
    assert (told["heads"].batches, told["heads"].remaining, told["heads"].examples) == (2, 2, 2)
    assert "logit_diff: exact effects of 4 heads of layers.0.attn_z" in told["heads"].plan
    assert record == []
    write, stopped, written = StoreWriter.write, [KeyboardInterrupt()], list[int]()

    def stop(self: StoreWriter, number: int, examples: Any, values: Any) -> None:
        if "effects" in values and number == 1 and stopped:
            raise stopped.pop()
        written.append(number)
        write(self, number, examples, values)

    monkeypatch.setattr(StoreWriter, "write", stop)
    with pytest.raises(KeyboardInterrupt) as ended:
        runner.run(cfgs)
    assert record[2:] == [("open", "heads", None, None), ("close", "heads", True, False, ended.value)]
    assert runner.dry_run(cfgs)["heads"].remaining == 1
    del record[:], written[:]
    stores = runner.run(cfgs)
    assert record == [("open", "heads", None, None), ("close", "heads", True, True, None)]
    assert written == [1]
    assert stores["heads"].complete
    del record[:]
    assert runner.run({"other": cfgs["heads"]})["other"].folder == stores["heads"].folder
    assert record == []


def test_lenses_in_a_run_give_their_own_numbers(tmp_path):
    session = session_of(tmp_path, ALIKE)
    asked = {"lens": QuestionCfg(method="lens", objective="prob"), "direct": QuestionCfg(method="direct")}
    runner = AnalysisRunner(**session, root=tmp_path / "stores")
    assert "prob: lens" in runner.dry_run(asked)["lens"].plan
    stores = runner.run(asked)
    model, tokenizer = session.module.model, session.datamodule.tokenizer
    lens, direct = it.logit_lens(model, tokenizer, ALIKE, objective="prob"), it.direct_logit_attribution
    assert_frame_equal(LogitLens(stores["lens"]).layers(), lens.layers(), rtol=1e-5)
    expected = direct(model, tokenizer, ALIKE).to_pandas()
    assert_frame_equal(Effects(stores["direct"]).to_pandas(), expected, rtol=1e-4, atol=1e-5)
    for settings, told in (
        ({"method": "lens", "units": "heads"}, "units is 'heads'"),
        ({"method": "direct", "value": "mean"}, "value is 'mean'"),
    ):
        with pytest.raises(
            it.ConfigurationError, match=f"QuestionCfg.{told}.* the method {settings['method']} looks at the clean run"
        ):
            QuestionCfg(**settings)


def test_a_limit_takes_the_first_rows_up_to_whole_batches(tmp_path):
    session = session_of(tmp_path, ROWS)
    cfg = QuestionCfg(units={"heads": 1}, objective="kl", batch_size=2)
    [store] = AnalysisRunner(**session, root=tmp_path, limit=2).run({"heads": cfg}).values()
    assert Effects(store).question["rows"] == 3


@pytest.mark.parametrize(
    ("units", "words"),
    [
        ("neuron", "'neuron': 'all'.* names no units. Units are"),
        ({"neurons": 1, "heads": 1}, "names no units"),
        ({"heads": 1, "nly": [0]}, "names no units"),
        ({"heads": "some"}, "heads of .*'some'"),
        ({"heads": True}, "heads of .*True"),
        ({"heads": 1, "only": ["x"]}, r"only is \['x'\]"),
        ({"vector": 3}, "vector of .*3"),
        ({"vector": "layers.1.mlp_out", "only": 1}, "there are no such"),
        ({"latents": "mine"}, "no latent model 'mine'. The session has .*layers.1.resid_post"),
        ({"latents": ["all"]}, "no latent model 'all'"),
        ({"heads": 99}, "no heads of layer 99"),
        ([], "empty list"),
        (None, "NoneType is no choice"),
    ],
)
def test_units_that_are_none_are_told(tmp_path_factory, units, words, session):
    with pytest.raises(it.AnalysisError, match=words):
        AnalysisRunner(**session, root=tmp_path_factory.getbasetemp() / "none").run({"a": QuestionCfg(units=units)})


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> it.ITSession:
    return session_of(
        tmp_path_factory.mktemp("session"), ALIKE, latent_models=[RandomDictionary("layers.1.resid_post", seed=1)]
    )


def test_a_limit_cuts_held_out_rows_and_a_dry_run_counts_evidence(tmp_path):
    words = ("dog", "cat", "boat", "lamp", "house", "tree", "park", "hat")
    rows = [it.PromptRow(f"the red {word} was", (" old", " blue"), i % 2) for i, word in enumerate(words)]
    session = session_of(tmp_path, {"validation": rows[:4], "test": rows[4:]}, eval_batch_size=1)
    evidence = EvidenceCfg(held_out="test", top=1, cards=1, steer=1, new_tokens=1)
    cfgs = {"heads": QuestionCfg(units={"heads": 0}, split="validation", limit=2, evidence=evidence)}
    told = {limit: AnalysisRunner(**session, root=tmp_path / "stores", limit=limit) for limit in (None, 3)}
    assert told[3].dry_run(cfgs)["heads"].evidence == ("held_out", "cards", "steering")
    assert "and evidence (held-out, cards, steering)" in str(told[3].dry_run(cfgs)["heads"])
    for limit, n_held_out in ((3, 3), (None, 4)):
        store = told[limit].run(cfgs)["heads"]
        found = it.Evidence.of(store).held_out
        assert (Effects(store).question["rows"], found and found.rows) == (2, n_held_out)
    assert told[None].dry_run(cfgs)["heads"].evidence == ()
    assert told[3].dry_run(cfgs)["heads"].evidence == ("held_out",)


def test_a_question_notes_the_call_or_what_made_it_last(tmp_path):
    session = session_of(tmp_path, ALIKE)
    asked = {"heads": QuestionCfg(units=it.Heads(1), objective="log_prob")}
    found = [AnalysisRunner(**session, root=tmp_path / "stores").run(asked)["heads"]]
    made_by = {"command": "interpretune run later.yaml"}
    later = AnalysisRunner(**session, root=tmp_path / "stores", made_by=made_by)
    found += [later.run(asked)["heads"]]
    call = "AnalysisRunner(**session).run({'heads': QuestionCfg(units=Heads(layer=1), objective='log_prob')})"
    assert [store.manifest.about["made_by"] for store in found] == [{"call": call}] * 2
    asked["heads"].evidence = EvidenceCfg(cards=1, top=1, steer=0)
    assert later.run(asked)["heads"].manifest.about["made_by"] == made_by
    key = it.Effects(found[0]).store.manifest.key
    assert later.run(asked)["heads"].manifest.key == key


def test_effects_on_units_and_of_components_in_a_run_are_those_of_the_calls(tmp_path):
    session = session_of(tmp_path, ALIKE, hf_model=tiny_llama().double().eval())
    model, tokenizer = session.module.model, session.datamodule.tokenizer
    asked = {
        "heads": QuestionCfg(units={"heads": 0}, value="corrupted"),
        "on": QuestionCfg(units={"heads": 0}, targets={"neurons": 1}, value="corrupted", gradient=True, tolerance=0.01),
        "nodes": QuestionCfg(method="node_patching", units=["heads", {"vector": "layers.0.mlp_out"}]),
        "edges": QuestionCfg(method="component_edges", approximations=["eap", "eap_ig"], steps=2, exact=3),
        "paths": QuestionCfg(method="path_patching", edges=[["layers.0.mlp_out", "logits"]]),
    }
    units, given = [it.Heads(), it.Vector("layers.0.mlp_out")], {"value": "corrupted", "gradient": True}
    alone = {
        "on": it.effects_on(
            model, tokenizer, ALIKE, units=it.Heads(0), on=it.Neurons(1), tolerance=0.01, batch_size=3, **given
        ),
        "nodes": it.node_patching(model, tokenizer, ALIKE, units=units),
        "edges": it.component_edges(model, tokenizer, ALIKE, method=["eap", "eap_ig"], steps=2, exact=3),
        "paths": it.path_patching(model, tokenizer, ALIKE, edges=[("layers.0.mlp_out", "logits")]),
    }
    runner = AnalysisRunner(**session, root=tmp_path / "stores")
    assert runner.dry_run(asked)["edges"].remaining == 1
    stores = runner.run(asked)
    for name, wanted in alone.items():
        found = asked[name].result(stores[name])
        assert type(found) is type(wanted)
        assert len(found.to_pandas()) > 0
        assert_frame_equal(found.to_pandas(), wanted.to_pandas(), rtol=0, atol=1e-10)
    page = write_page([store.folder for store in stores.values()], tmp_path / "page.html").read_text()
    assert "Nodes and edges" in page
    for name, wanted in alone.items():
        assert f"<p>{escape(repr(wanted))}.</p>" in page, name
        assert str(wanted.top(1).iloc[0, 0]) in page
    assert "Nodes and edges" in write_page([alone["on"]], tmp_path / "other.html").read_text()
    runner.run(asked)
    assert set(runner.found) == {*asked}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"units": "heads", "at": "each"}, "QuestionCfg.at is 'each', which means nothing without targets"),
        ({"method": "component_edges", "value": "mean"}, "QuestionCfg.value is 'mean', which means nothing with the"),
        ({"units": "heads", "exact": 3}, "QuestionCfg.exact is 3, which means nothing with the method exact"),
        ({"units": "heads", "targets": "heads", "method": "gradient"}, "targets asks for exact effects on units"),
        ({"units": "heads", "targets": "heads", "evidence": EvidenceCfg()}, "in an analysis without targets"),
        ({"method": "component_edges", "approximations": ["eap", "ap"]}, "QuestionCfg.approximations is"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(it.ConfigurationError, match=words):
        QuestionCfg(**settings)
