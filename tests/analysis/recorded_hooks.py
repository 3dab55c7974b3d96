"""An adapter that notes the hooks of analyses and changes results, and the ways into an analysis."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import interpretune as it
from interpretune.analysis import (
    AnalysisBatch,
    AnalysisCache,
    AnalysisCfg,
    AnalysisRunner,
    loss_and_logit_diffs,
    run_analysis,
    run_with_ctx,
)
from interpretune.cli.run import run_analyses
from interpretune.cli.run_config import RunConfig
from interpretune.cli.written_analysis import RunnerOptions, WrittenAnalysis
from interpretune.plugins.stack import build_context

RECORDER = """
record = []
fails = {}

def note(self, hook, analysis, *more):
    self.record.append((analysis.name, hook, analysis.batch_idx, *more))
    if (hook, analysis.name, analysis.batch_idx) in self.fails:
        raise self.fails[hook, analysis.name, analysis.batch_idx]

@it.hookimpl
def it_open_analysis(self, analysis):
    self.note("open", analysis, analysis.store, analysis.error)

@it.hookimpl(wrapper=True)
def it_run_analysis(self, analysis):
    values = yield
    self.note("run", analysis, len(analysis.inputs), tuple(sorted(values)), analysis.plan.keeps == tuple(values))
    values["orig_labels"] += 7
    return {**values, "logit_diffs": values["logit_diffs"] * 0 + analysis.batch_idx}

@it.hookimpl
def it_close_analysis(self, analysis):
    store = analysis.store
    batches = store.batches() if store is not None else ()
    rows = [(batch["orig_labels"].tolist(), batch["logit_diffs"].tolist()) for batch in batches]
    sealed = store is None or store.folder is None or store.complete or analysis.error is not None
    self.note("close", analysis, rows, sealed, analysis.error)
"""
"""Adds 7 to labels in place and puts the batch's index in the place of logit differences."""

Way = Callable[[it.ITSession, Sequence[str], Path], dict[str, AnalysisCache]]


def install_recorder(adapter_of: Callable[..., None], name: str = "recorder", **declaration: Any) -> Any:
    """The recorder as an installed adapter: the object that notes."""
    adapter_of(name, body=RECORDER, **declaration)
    return build_context((name,)).adapters[-1].plugin


class HasItsOwnStep(it.ITModule):
    """A step of the same calls as core's."""

    def analysis_test_step(self, batch: Any, batch_idx: int, analysis_cfg: AnalysisCfg) -> None:
        label_ids, labels = self.labels_to_ids(batch.pop("labels"))
        analysis_batch = AnalysisBatch(labels=label_ids, orig_labels=labels)
        run_with_ctx(self, analysis_batch, analysis_cfg, batch, batch_idx)
        loss_and_logit_diffs(self, analysis_batch, analysis_cfg, batch, batch_idx)
        analysis_cfg.analysis_cache.save(analysis_batch, batch)


def by_run_analysis(session: it.ITSession, modes: Sequence[str], folder: Path) -> dict[str, AnalysisCache]:
    return {mode: run_analysis(**session, analysis_cfg=AnalysisCfg(mode=mode)) for mode in modes}


def by_runner(session: it.ITSession, modes: Sequence[str], folder: Path) -> dict[str, AnalysisCache]:
    stores = AnalysisRunner(**session, root=folder / "stores").run({mode: AnalysisCfg(mode=mode) for mode in modes})
    return {name: AnalysisCache.of(store) for name, store in stores.items()}


def by_command(session: it.ITSession, modes: Sequence[str], folder: Path) -> dict[str, AnalysisCache]:
    config = RunConfig(
        session=session.session_cfg,
        analyses={mode: WrittenAnalysis(mode=mode) for mode in modes},
        runner=RunnerOptions(root=str(folder / "stores")),
        dry_run=False,
        json=False,
    )
    report = run_analyses(config, Console(file=io.StringIO()))
    return {row["name"]: AnalysisCache.of(row["folder"]) for row in report.analyses}
