"""The hooks of analyses: who opens and closes what, what an answer must be, and when nothing is called."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import interpretune as it
from interpretune.analysis import (
    AnalysisBatch,
    AnalysisCache,
    AnalysisCfg,
    AnalysisRun,
    AnalysisRunner,
    loss_and_logit_diffs,
    run_analysis,
    run_with_ctx,
)
from interpretune.analysis.open_analyses import OpenAnalyses
from interpretune.plugins.stack import build_context
from tests.analysis.recorded_hooks import by_runner, install_recorder
from tests.sessions import N_ROWS, make_session
from tests.tiny_latents import RandomDictionary

NAMED = """
record = []
errors = {{}}

def note(self, hook, analysis):
    self.record.append(("{name}", hook, analysis.name))
    if ("{name}", hook) in self.errors:
        raise self.errors["{name}", hook]
"""
PLAIN = """
@it.hookimpl
def it_{verb}_analysis(self, analysis):
    self.note("{verb}", analysis)
"""
WRAPPER = """
@it.hookimpl(wrapper=True)
def it_{verb}_analysis(self, analysis):
    self.note("before {verb}", analysis)
    try:
        return (yield)
    except RuntimeError:
        if {keeps}:
            return None
        raise
    finally:
        self.note("after {verb}", analysis)
"""


@pytest.fixture
def opened_by(adapter_of: Callable[..., None]) -> Callable[..., tuple[Any, list[Any], dict[Any, Exception]]]:
    """Stack adapters that note the opening and closing of analyses: the module, the notes, and what is to fail."""

    def opened_by(**kinds: str) -> tuple[Any, list[Any], dict[Any, Exception]]:
        for name, kind in kinds.items():
            form = PLAIN if kind == "plain" else WRAPPER
            body = "".join(form.format(verb=verb, keeps=kind == "keeps errors") for verb in ("open", "close"))
            if kind == "closes only":
                body = PLAIN.format(verb="close")
            adapter_of(name, body=NAMED.format(name=name) + body)
        context = build_context(tuple(kinds))
        record: list[Any] = []
        errors: dict[Any, Exception] = {}
        for adapter in context.adapters[1:]:
            adapter.plugin.record, adapter.plugin.errors = record, errors
        return SimpleNamespace(hook=context.hook), record, errors

    return opened_by


def analysis_of(name: str) -> AnalysisRun:
    return AnalysisRun(name=name, plan=None, cfg=AnalysisCfg())


def run(module: Any, *names: str, error: BaseException | None = None) -> None:
    with OpenAnalyses(module) as opened:
        for name in names:
            opened.open(analysis_of(name))
        if error is not None:
            raise error


def test_closing_goes_the_other_way_round(opened_by):
    module, record, _ = opened_by(a="plain", b="closes only", c="plain", d="wrapper")
    with OpenAnalyses(module) as opened:
        opened.open(analysis_of("one"))
        opened.open(analysis_of("two"))
        record.clear()
    around = ("d", "before close"), ("d", "after close")
    closed = [around[0], ("c", "close"), ("b", "close"), ("a", "close"), around[1]]
    assert record == [(*who, name) for name in ("two", "one") for who in closed]


def test_closed_by_those_whose_open_returned(opened_by):
    module, record, errors = opened_by(a="plain", b="closes only", c="plain", d="wrapper", e="plain")
    errors["c", "open"] = RuntimeError("no room")
    with pytest.raises(RuntimeError, match="no room") as raised:
        run(module, "one")
    assert raised.value is errors["c", "open"]
    assert [entry[:2] for entry in record] == [
        ("d", "before open"),
        ("a", "open"),
        ("c", "open"),
        ("d", "after open"),  # it saw the error, and has not opened anything
        ("a", "close"),
    ]


def test_an_adapter_that_did_not_open_does_not_close(opened_by):
    """Also where the wrapper of another one keeps the error to itself, and the analysis runs."""
    module, record, errors = opened_by(a="plain", b="closes only", c="plain", d="keeps errors", e="plain")
    errors["c", "open"] = RuntimeError("no room")
    with OpenAnalyses(module) as opened:
        opened.open(analysis_of("one"))
        record.clear()
    assert [entry[0] for entry in record] == ["d", "b", "a", "d"]


@pytest.mark.parametrize("failing", ["close", "after close", "before close"])
def test_all_close_and_the_first_error_is_raised(opened_by, failing):
    module, record, errors = opened_by(a="plain", b="wrapper", c="plain")
    errors["c", "close"] = first = ValueError("c is stuck")
    errors["b", failing] = RuntimeError("b is stuck")
    with pytest.raises((ValueError, RuntimeError)) as raised:
        run(module, "one", "two")
    closed = [entry[0] for entry in record if entry[1] == "close"]
    assert closed == ["c", "a", "c", "a"]
    assert raised.value is (errors["b", failing] if failing == "before close" else first)
    said = "\n".join([str(raised.value), *getattr(raised.value, "__notes__", [])])
    assert "c is stuck" in said
    assert ("b is stuck" in said) is (failing != "close")  # a wrapper has no such call


def test_errors_in_closing_are_noted_at_what_ended_the_run(opened_by):
    module, record, errors = opened_by(a="plain", b="plain")
    errors["b", "close"] = ValueError("b is stuck")
    with pytest.raises(RuntimeError) as raised:
        run(module, "one", error=RuntimeError("in the middle"))
    said = "\n".join([str(raised.value), *getattr(raised.value, "__notes__", [])])
    assert said.startswith("in the middle")
    assert "another error: ValueError: b is stuck" in said
    assert [entry[0] for entry in record if entry[1] == "close"] == ["b", "a"]


def test_an_interrupt_in_closing_goes_before_errors(opened_by):
    module, _, errors = opened_by(a="plain", b="plain")
    errors["b", "close"] = ValueError("b is stuck")
    errors["a", "close"] = KeyboardInterrupt()
    for error in (None, RuntimeError("in the middle")):
        with pytest.raises(KeyboardInterrupt):
            run(module, "one", error=error)


def test_results_that_cannot_be_read_are_an_error(opened_by):
    module, record, _ = opened_by(a="plain")

    def results() -> Any:
        raise it.StoreError("a shard is damaged")

    with pytest.raises(it.StoreError, match="a shard is damaged"), OpenAnalyses(module) as opened:
        opened.open(analysis_of("one"), results)
    assert record[-1] == ("a", "close", "one")


def session_with(folder: Path, *adapters: str, **settings: Any) -> it.ITSession:
    latent_model = RandomDictionary("blocks.0.hook_resid_post", seed=1)
    return make_session(folder, adapters=adapters or ("core",), latent_models=[latent_model], **settings)


def test_what_is_complete_is_not_opened_again(adapter_of, tmp_path, monkeypatch):
    recorder = install_recorder(adapter_of)
    session = session_with(tmp_path, "recorder")
    by_runner(session, ["clean_no_sae"], tmp_path)
    recorder.record.clear()
    by_runner(session, ["clean_no_sae"], tmp_path)
    assert recorder.record == []
    by_runner(session, ["clean_no_sae", "clean_w_sae"], tmp_path)
    assert {entry[0] for entry in recorder.record} == {"clean_w_sae"}
    recorder.record.clear()

    with monkeypatch.context() as patch:
        patch.setattr("interpretune.store.writer.seal", fail)
        with pytest.raises(OSError, match="power cut"):
            by_runner(session, ["ablation"], tmp_path)
    *_, sealed, error = recorder.record[-1]
    assert (sealed, str(error)) == (True, "power cut")
    recorder.record.clear()
    by_runner(session, ["ablation"], tmp_path)  # nothing is left to do but to seal
    assert [entry[1] for entry in recorder.record] == ["open", "close"]
    assert sum(len(labels) for labels, _ in recorder.record[-1][3]) == N_ROWS


def fail(*_: Any) -> None:
    raise OSError("power cut")


def test_a_dry_run_is_no_analysis(adapter_of, tmp_path):
    recorder = install_recorder(adapter_of)
    session = session_with(tmp_path, "recorder")
    assert AnalysisRunner(**session, root=tmp_path / "stores").dry_run({"a": "clean_no_sae"})["a"].examples == N_ROWS
    assert recorder.record == []


def test_no_batches_are_an_analysis_without_results(adapter_of, tmp_path):
    recorder = install_recorder(adapter_of)
    run_analysis(**session_with(tmp_path, "recorder"), analysis_cfg=AnalysisCfg(), limit_batches=0)
    assert [entry[1] for entry in recorder.record] == ["open", "close"]


def test_ranks_close_when_they_have_done_their_share(adapter_of, tmp_path, monkeypatch):
    body = "@it.hookimpl\ndef it_close_analysis(self, analysis):\n"
    body += "    self.closed.append((analysis.store.n_batches, analysis.store.complete, analysis.error))\n"
    body += "def identity(self):\n    return None"
    adapter_of("closer", body=body)
    session = session_with(tmp_path, "closer")
    session.context.adapters[-1].plugin.closed = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        by_runner(session, ["clean_no_sae"], tmp_path)
    assert session.context.adapters[-1].plugin.closed == [(2, False, None), (3, True, None)]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("yield", "None"),
        ("return {**(yield), 'mine': 1}", "a mapping with mine, which the plan does not keep,"),
        ("return {'preds': (yield)['preds']}", "a mapping without labels, orig_labels, answer_indices, loss"),
        ("return {**(yield), 'preds': [1]}", r"a list as preds: int64 per example"),
        (
            "return {**(yield), 'logit_diffs': (yield_)[:1]}".replace("yield_", "__import__('torch').zeros(9)"),
            "float32 of",
        ),
        ("return [(yield)]", "a list"),
    ],
)
def test_answers_that_are_no_results_are_refused(adapter_of, tmp_path, answer, told):
    adapter_of("vague", body=f"@it.hookimpl(wrapper=True)\ndef it_run_analysis(self):\n    {answer}")
    session = session_with(tmp_path, "vague")
    message = rf"it_run_analysis gave {told}.* for batch 0 of the analysis clean_no_sae. .*vague \(wrapper\), core"
    with pytest.raises(it.AnalysisError, match=message):
        run_analysis(**session, analysis_cfg=AnalysisCfg())
    with pytest.raises(it.AnalysisError, match=message):
        by_runner(session, ["clean_no_sae"], tmp_path)


def test_an_adapter_may_give_results_of_its_own(adapter_of, tmp_path, monkeypatch):
    body = """
    @it.hookimpl
    def it_run_analysis(self, analysis):
        import torch
        n = len(analysis.inputs)
        whole = {name: torch.full((n,), 3) for name in ("labels", "orig_labels", "answer_indices", "preds")}
        return {**whole, "loss": torch.tensor(1.5), "logit_diffs": torch.arange(n) / 4}
    """
    adapter_of("oracle", body=body)
    session = session_with(tmp_path, "oracle")
    monkeypatch.setattr(type(session.module.backend), "run", fail)
    alone = run_analysis(**session, analysis_cfg=AnalysisCfg())
    stored = AnalysisRunner(**session, root=tmp_path / "stores").run({"a": AnalysisCfg()})["a"]
    for cache in (alone, AnalysisCache.of(stored)):
        assert torch.cat(cache.logit_diffs).tolist() == [0, 0.25, 0.5, 0, 0.25, 0.5, 0]
        assert [float(loss) for loss in cache.loss] == [1.5] * 3


def test_results_are_there_inside_the_hook_only():
    with pytest.raises(it.AnalysisError, match=r"The analysis one has results of a batch inside it_run_analysis only"):
        analysis_of("one").results()
    calls = itertools.count()
    analysis = analysis_of("one").at_batch(0, None, lambda: {"call": next(calls)})
    assert [analysis.results() for _ in range(2)] == [{"call": 0}] * 2


def test_latents_that_a_step_chooses_are_those_of_the_results(adapter_of, tmp_path):
    body = "seen = []\n\n@it.hookimpl(wrapper=True)\ndef it_run_analysis(self, analysis):\n"
    body += "    self.seen.append(analysis.cfg)\n    return (yield)"
    adapter_of("looker", body=body)
    session = session_with(tmp_path, "looker")
    module, cfg = session.module, AnalysisCfg(mode="clean_w_sae")
    batch = next(iter(session.datamodule.test_dataloader()))
    label_ids, labels = module.labels_to_ids(batch.pop("labels"))
    chosen = {"blocks.0.hook_resid_post.hook_sae_acts_post": torch.tensor([1, 4])}
    analysis_batch = AnalysisBatch(labels=label_ids, orig_labels=labels, alive_latents=chosen)
    run_with_ctx(module, analysis_batch, cfg, batch, 2)
    assert [item.latents.tolist() for item in analysis_batch.activations.values()] == [[1, 4]]
    assert session.context.adapters[-1].plugin.seen[0] is cfg


@pytest.mark.parametrize("in_place", [True, False])
def test_numbers_follow_logits_that_a_step_changes(adapter_of, tmp_path, in_place):
    """What adapters changed stands until the step changes what it follows from."""
    recorder = install_recorder(adapter_of)
    session = session_with(tmp_path, "recorder")
    module, cfg = session.module, AnalysisCfg(mode="ablation")
    batch = next(iter(session.datamodule.test_dataloader()))
    label_ids, labels = module.labels_to_ids(batch.pop("labels"))
    analysis_batch = AnalysisBatch(labels=label_ids, orig_labels=labels.clone())
    run_with_ctx(module, analysis_batch, cfg, batch, 1)
    loss_and_logit_diffs(module, analysis_batch, cfg, batch, 1)
    assert analysis_batch.logit_diffs.tolist() == [1.0] * 3
    assert [entry[1] for entry in recorder.record] == ["run"]
    effects = {name: item.values for name, item in analysis_batch.effects.items()}
    if in_place:
        analysis_batch.orig_labels.copy_(labels)
        analysis_batch.answer_logits *= 2
    else:
        analysis_batch.orig_labels = labels
        analysis_batch.answer_logits = analysis_batch.answer_logits * 2
    loss_and_logit_diffs(module, analysis_batch, cfg, batch, 1)
    answers = module.standardize_logits(analysis_batch.answer_logits)[:, -1]
    rows = torch.arange(len(labels))
    torch.testing.assert_close(analysis_batch.logit_diffs, answers[rows, labels] - answers[rows, 1 - labels])
    assert any(not torch.equal(item.values, effects[name]) for name, item in analysis_batch.effects.items())
