"""An adapter that notes the hooks of analyses and changes results, and the ways into an analysis."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

import interpretune as it
from interpretune import hookspecs
from interpretune.analysis import (
    AnalysisBatch,
    AnalysisCache,
    AnalysisCfg,
    AnalysisRun,
    AnalysisRunner,
    SaveCfg,
    loss_and_logit_diffs,
    plan_of,
    run_analysis,
    run_with_ctx,
)
from interpretune.cli.main import main
from interpretune.cli.run import run_analyses
from interpretune.cli.run_config import RunConfig
from interpretune.cli.written_analysis import RunnerOptions, WrittenAnalysis
from interpretune.plugins.stack import build_context
from tests.sessions import ANSWERS

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

EVERY_HOOK = (
    *("it_move_batch", "it_forward", "it_generate", "it_run_step", "it_log", "it_run_loop"),
    *("it_contribute_operations", "it_open_analysis", "it_run_analysis", "it_close_analysis"),
)
"""Hooks of the step and the analysis phase, without those that are called before or after analyses."""
KEEPER = """
record = []

def identity(self):
    return None

@it.hookimpl
def it_load_latent_models(self):
    from tests.tiny_latents import RandomDictionary
    return [RandomDictionary("blocks.0.hook_resid_post", seed=1)]
"""
AROUND = """
@it.hookimpl(wrapper=True)
def {hook}({names}):
    carried = self.told(({arguments},))
    self.record.append(("{hook}", carried))
    found = yield
    self.record.append(("{hook} ends", carried, self.told(found)))
    return found
"""


def install_keeper(adapter_of: Callable[..., None]) -> Any:
    """An installed adapter that keeps every call of the hooks of steps and analyses, and brings a latent model."""
    around = []
    for hook in EVERY_HOOK:
        names = list(inspect.signature(getattr(hookspecs, hook)).parameters)
        around.append(AROUND.format(hook=hook, names=", ".join(["self", *names]), arguments=", ".join(names)))
    adapter_of("keeper", body=KEEPER + "".join(around))
    keeper = build_context(("keeper",)).adapters[-1].plugin
    keeper.told = told
    return keeper


def told(value: Any) -> Any:
    """What a hook carries, to be compared between ways in: everything but where the results go."""
    if isinstance(value, tuple):
        return tuple(map(told, value))
    if isinstance(value, AnalysisRun):
        rows = [] if value.store is None else [batch.examples.tolist() for batch in value.store.batches()]
        plan = value.plan if value.plan is None else str(value.plan)
        size = value.inputs if value.inputs is None else len(value.inputs)
        return value.name, plan, value.cfg and str(value.cfg.mode), value.batch_idx, size, rows, value.error
    if isinstance(value, Mapping):
        return sorted(map(str, value))
    return value if isinstance(value, (str, int, float)) or value is None else callable(value)


Way = Callable[[it.ITSession, Sequence[str], Path], dict[str, AnalysisCache]]


def install_recorder(adapter_of: Callable[..., None], name: str = "recorder", **declaration: Any) -> Any:
    """The recorder as an installed adapter: the object that notes."""
    adapter_of(name, body=RECORDER, **declaration)
    return build_context((name,)).adapters[-1].plugin


class HasTestStep(it.ITModule):
    """What a trainer can test."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        pass


class HasItsOwnStep(it.ITModule):
    """A step of the same calls as core's."""

    def analysis_test_step(self, batch: Any, batch_idx: int, analysis_cfg: AnalysisCfg) -> None:
        label_ids, labels = self.labels_to_ids(batch.pop("labels"))
        analysis_batch = AnalysisBatch(labels=label_ids, orig_labels=labels)
        run_with_ctx(self, analysis_batch, analysis_cfg, batch, batch_idx)
        loss_and_logit_diffs(self, analysis_batch, analysis_cfg, batch, batch_idx)
        analysis_cfg.analysis_cache.save(analysis_batch, batch, tokenizer=self.datamodule.tokenizer)


class ChangesItsResults(HasTestStep):
    """A step that calls further hooks, and saves other numbers than the plan alone would give."""

    def analysis_test_step(self, batch: Any, batch_idx: int, analysis_cfg: AnalysisCfg) -> None:
        label_ids, labels = self.labels_to_ids(batch.pop("labels"))
        self(**batch)
        self.log("rows", float(len(labels)), batch_size=len(labels))
        analysis_batch = AnalysisBatch(labels=label_ids, orig_labels=labels)
        run_with_ctx(self, analysis_batch, analysis_cfg, batch, batch_idx)
        analysis_batch.answer_logits = analysis_batch.answer_logits * 2
        loss_and_logit_diffs(self, analysis_batch, analysis_cfg, batch, batch_idx)
        analysis_cfg.analysis_cache.save(analysis_batch, batch, tokenizer=self.datamodule.tokenizer)


def cfg_of(mode: str) -> AnalysisCfg:
    return AnalysisCfg(mode=mode, analysis_cache=AnalysisCache(SaveCfg(prompts=True, tokens=True)))


def by_run_analysis(session: it.ITSession, modes: Sequence[str], folder: Path) -> dict[str, AnalysisCache]:
    return {mode: run_analysis(**session, analysis_cfg=cfg_of(mode)) for mode in modes}


def by_runner(session: it.ITSession, modes: Sequence[str], folder: Path) -> dict[str, AnalysisCache]:
    stores = AnalysisRunner(**session, root=folder / "stores").run({mode: cfg_of(mode) for mode in modes})
    return {name: AnalysisCache.of(store) for name, store in stores.items()}


def by_plan(session: it.ITSession, modes: Sequence[str], folder: Path) -> dict[str, AnalysisCache]:
    plans = {mode: plan_of(cfg_of(mode), session.module.latent_models) for mode in modes}
    stores = AnalysisRunner(**session, root=folder / "stores").run(plans)
    return {name: AnalysisCache.of(store) for name, store in stores.items()}


def by_command(session: it.ITSession, modes: Sequence[str], folder: Path) -> dict[str, AnalysisCache]:
    save = SaveCfg(prompts=True, tokens=True)
    config = RunConfig(
        session=session.session_cfg,
        analyses={mode: WrittenAnalysis(mode=mode, save=save) for mode in modes},
        runner=RunnerOptions(root=str(folder / "stores")),
        dry_run=False,
        json=False,
        made_by={},
    )
    report = run_analyses(config, Console(file=io.StringIO()))
    return {row["name"]: AnalysisCache.of(row["folder"]) for row in report.analyses}


def by_file(session: it.ITSession, modes: Sequence[str], folder: Path) -> dict[str, AnalysisCache]:
    """``interpretune run`` with a file that says of the session what the session was made of."""
    made = session.session_cfg
    data, prompt = made.datamodule_cfg, made.datamodule_cfg.prompt_cfg
    analysis = {"save": {"prompts": True, "tokens": True}}
    written = {
        "session": {
            "adapter_ctx": list(made.adapter_ctx),
            "module_cls": f"{made.module_cls.__module__}.{made.module_cls.__qualname__}",
            "shared_cfg": {name: str(getattr(made.shared_cfg, name)) for name in ("model_name_or_path", "cache_dir")},
            "datamodule_cfg": {
                "data": {name: str(path) for name, path in data.data.items()},
                "text_fields": list(data.text_fields),
                "num_labels": data.num_labels,
                "prompt_cfg": {"ctx_question_join": prompt.ctx_question_join},
                "cust_tokenization_pattern": data.cust_tokenization_pattern,
                "eval_batch_size": data.eval_batch_size,
            },
            "module_cfg": {"device": "cpu", "generative_step_cfg": {"answers": list(ANSWERS)}},
        },
        "analyses": {mode: {"mode": mode, **analysis} for mode in modes},
        "runner": {"root": str(folder / "stores")},
    }
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
    assert main(["run", str(folder / "run.yaml")]) == 0
    return {mode: AnalysisCache.of(next((folder / "stores").glob(f"{mode}-*"))) for mode in modes}
