"""A module's own ``analysis_test_step`` whose results go to stores on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import interpretune as it
from interpretune.analysis import (
    AnalysisBatch,
    AnalysisCache,
    AnalysisCfg,
    AnalysisMode,
    AnalysisRunner,
    AnalysisStore,
    SaveCfg,
    plan_of,
    run_analysis,
)
from interpretune.analysis.runner import analysis_step
from interpretune.analysis.stored_run import StoredRun
from interpretune.operations import operation
from interpretune.store.fields import Field
from tests.sessions import N_ROWS, make_session
from tests.tiny_latents import RandomDictionary


class OwnStep(it.ITModule):
    """Notes what it is given, then does as ``then`` says."""

    passing_state = frozenset({"given", "then"})

    def analysis_test_step(self, batch: Any, batch_idx: int, analysis_cfg: AnalysisCfg) -> None:
        self.given.append((batch_idx, analysis_cfg))
        self.then(self, batch, batch_idx, analysis_cfg)


class OwnStepThatAdds(OwnStep):
    ADDED = 1

    def analysis_test_step(self, batch: Any, batch_idx: int, analysis_cfg: AnalysisCfg) -> None:
        super().analysis_test_step(batch, batch_idx, analysis_cfg)
        self.added = self.ADDED


@pytest.fixture
def session_with(tmp_path: Path) -> Callable[..., it.ITSession]:
    def session_with(then: Any = analysis_step, module_cls: type = OwnStep) -> it.ITSession:
        latent_model = RandomDictionary("blocks.0.hook_resid_post", seed=1)
        session = make_session(tmp_path, module_cls=module_cls, latent_models=[latent_model])
        session.module.given, session.module.then = [], then
        return session

    return session_with


def labels_only(module: Any, batch: Any, batch_idx: int, cfg: AnalysisCfg, **beside: Any) -> AnalysisBatch:
    """A step that never asks for an analysis."""
    label_ids, labels = module.labels_to_ids(batch.pop("labels"))
    saved = AnalysisBatch(labels=label_ids, orig_labels=labels, logit_diffs=torch.rand(len(labels)), **beside)
    cfg.analysis_cache.save(saved, batch)
    return saved


KEPT = ["labels", "orig_labels", "logit_diffs"]


def only_labels(session: it.ITSession, keep: list[str] = KEPT) -> Any:
    return plan_of(AnalysisCfg(), session.module.latent_models, keep=keep)


def test_the_step_gets_the_configuration_that_was_given(session_with, tmp_path):
    session = session_with()
    cfg = AnalysisCfg(mode="ablation", row_budget=8, analysis_cache=AnalysisCache(SaveCfg(intermediates=True)))
    store = AnalysisRunner(**session, root=tmp_path / "stores").run({"mine": cfg})["mine"]
    numbers, cfgs = zip(*session.module.given, strict=True)
    assert numbers == (0, 1, 2)
    assert {(item.mode, item.row_budget, item.plan) for item in cfgs} == {(AnalysisMode.ablation, 8, None)}
    assert "ablated_logits" in store.fields
    assert store.complete
    assert cfg.analysis_cache.store is None  # the caller's own stays as it was


def test_a_plan_reaches_the_step_as_a_configuration(session_with, tmp_path):
    @operation(writes=Field("certainty", "float"))
    def certainty(answers: torch.Tensor) -> torch.Tensor:
        return answers.softmax(dim=-1).amax(dim=-1)

    session = session_with()
    plan = plan_of(AnalysisCfg(mode="clean_w_sae"), session.module.latent_models, [certainty])
    store = AnalysisRunner(**session, root=tmp_path / "stores").run({"mine": plan})["mine"]
    assert {(cfg.plan, cfg.mode) for _, cfg in session.module.given} == {(plan, AnalysisMode.clean_w_sae)}
    in_memory = run_analysis(**session, analysis_cfg=AnalysisCfg(mode="clean_w_sae", plan=plan))
    for one, other in zip(AnalysisCache.of(store).batches, in_memory.batches, strict=True):
        assert one.further["certainty"].tolist() == other.further["certainty"].tolist()
        assert one.logit_diffs.tolist() == other.logit_diffs.tolist()
    stored = [batch["certainty"].tolist() for batch in store.batches()]
    assert stored == [further["certainty"].tolist() for further in in_memory.further]


def test_a_stopped_run_of_steps_goes_on(session_with, tmp_path, monkeypatch):
    whole = AnalysisRunner(**session_with(labels_only), root=tmp_path / "whole").run({"a": only_labels(session_with())})
    write = StoredRun.write

    def write_once(job: StoredRun, number: int, *args: Any) -> None:
        if number == 1:
            raise KeyboardInterrupt
        write(job, number, *args)

    session = session_with(labels_only)
    runner, plan = AnalysisRunner(**session, root=tmp_path / "stopped"), only_labels(session)
    with monkeypatch.context() as patched:
        patched.setattr(StoredRun, "write", write_once)
        with pytest.raises(KeyboardInterrupt):
            runner.run({"a": plan})
    session.module.given.clear()
    torch.rand(1)
    beside = only_labels(session, KEPT[:2])
    store = runner.run({"a": plan, "b": beside})["a"]
    assert [number for number, _ in session.module.given] == [0, 1, 1, 2, 2]  # only b lacks batch 0
    drawn = [[batch["logit_diffs"].tolist() for batch in found.batches()] for found in (store, whole["a"])]
    assert drawn[0] == drawn[1]  # what the step draws follows from the seed and the batch
    assert len({value for batch in drawn[0] for value in batch}) == N_ROWS


def test_a_step_that_takes_the_labels_takes_its_own(session_with, tmp_path):
    session = session_with(labels_only)
    plans = {"a": only_labels(session), "b": only_labels(session, KEPT[:2])}
    stores = AnalysisRunner(**session, root=tmp_path / "stores").run(plans)
    one, other = (torch.cat([batch["labels"] for batch in stores[name].batches()]) for name in plans)
    assert one.tolist() == other.tolist()


def test_a_step_counts_in_the_key(session_with, tmp_path, monkeypatch):
    class OwnCfg(AnalysisCfg):
        threshold = 0.5

    def folder(module_cls: type = OwnStep, cfg: Any = "clean_no_sae") -> Path:
        session = session_with(module_cls=module_cls)
        return AnalysisRunner(**session, root=tmp_path / "stores").dry_run({"a": cfg})["a"].folder

    other = OwnCfg()
    other.threshold = 0.7
    mode = AnalysisCfg(mode="clean_w_sae", plan=only_labels(session_with()))
    found = [folder(it.ITModule), folder(), folder(OwnStepThatAdds), folder(cfg=OwnCfg()), folder(cfg=other)]
    found += [folder(cfg=mode), folder(cfg=mode.plan)]
    monkeypatch.setattr(OwnStepThatAdds, "ADDED", 2)
    found.append(folder(OwnStepThatAdds))
    assert len(set(found)) == len(found)
    assert folder() == found[1]


def test_a_dry_run_calls_no_step(session_with, tmp_path):
    session = session_with()
    assert AnalysisRunner(**session, root=tmp_path / "stores").dry_run({"a": "ablation"})["a"].examples == N_ROWS
    assert session.module.given == []


def nothing(module: Any, batch: Any, batch_idx: int, cfg: AnalysisCfg) -> None:
    pass


def twice(module: Any, batch: Any, batch_idx: int, cfg: AnalysisCfg) -> None:
    cfg.analysis_cache.save(labels_only(module, batch, batch_idx, cfg), batch)


def unknown(module: Any, batch: Any, batch_idx: int, cfg: AnalysisCfg) -> None:
    labels_only(module, batch, batch_idx, cfg, further={"mood": torch.zeros(3)})


@pytest.mark.parametrize(
    ("step", "keep", "told"),
    [
        (nothing, KEPT, r"nothing for batch 0 of the analysis a: call analysis_cfg.analysis_cache.save"),
        (twice, KEPT, r"batch 0 of the analysis a again\. Into a store each batch is saved once"),
        (
            unknown,
            KEPT,
            r"batch 0 of the analysis a with mood\. .* its plan keeps: labels, orig_labels, logit_diffs",
        ),
        (
            labels_only,
            None,
            r"batch 0 of the analysis a without answer_indices, loss, preds\. .* keep=\[\.\.\.\]",
        ),
    ],
)
def test_what_a_step_saves_must_be_what_is_kept(session_with, tmp_path, step, keep, told):
    session = session_with(step)
    plan = plan_of(AnalysisCfg(), session.module.latent_models, keep=keep)
    with pytest.raises(it.AnalysisError, match=rf"OwnStep\.analysis_test_step saved {told}"):
        AnalysisRunner(**session, root=tmp_path / "stores").run({"a": plan})


def test_results_that_are_not_finite_are_refused(session_with, tmp_path):
    def broken(module: Any, batch: Any, batch_idx: int, cfg: AnalysisCfg) -> None:
        label_ids, labels = module.labels_to_ids(batch.pop("labels"))
        diffs = torch.full((len(labels),), float("nan"))
        cfg.analysis_cache.save(AnalysisBatch(labels=label_ids, orig_labels=labels, logit_diffs=diffs), batch)

    session = session_with(broken)
    with pytest.raises(it.NotFiniteError, match="logit_diffs"):
        AnalysisRunner(**session, root=tmp_path / "stores").run({"a": only_labels(session)})
    [folder] = (tmp_path / "stores").iterdir()
    assert AnalysisStore.open(folder).n_batches == 0
