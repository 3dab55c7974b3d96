"""The engine of analyses: opens them, takes them batch by batch through the step, stores what comes, closes them."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from attrs import define
from rich.console import Console

from interpretune.activations.finite import rows_named
from interpretune.analysis.analysis_run import AnalysisRun
from interpretune.analysis.finite_results import check_results
from interpretune.analysis.mode_plans import measured_by, plan_of
from interpretune.analysis.modes import AnalysisCfg
from interpretune.analysis.open_analyses import OpenAnalyses
from interpretune.analysis.steps import analyse_batch, dashboard_urls, sources_of
from interpretune.operations import Plan, PlanRun
from interpretune.operations.execution import draw_from
from interpretune.operations.objectives import objective_of
from interpretune.session.answers import answer_words, take_labels
from interpretune.session.step_routing import ANALYSIS_STEP
from interpretune.system.model_lock import model_lock
from interpretune.system.progress import progress_bar
from interpretune.system.put_back import with_own_draws
from interpretune.system.torch_state import eval_mode

if TYPE_CHECKING:
    from interpretune.operations.execution import BatchRun
    from interpretune.session.module import ITModule
    from interpretune.store import AnalysisStore


@define(eq=False, kw_only=True)
class Job:
    """An analysis and the store that its results go to: here that of its configuration's cache, in memory.

    Attributes:
        analysis: What hooks are told of it.
        cfg: What an ``analysis_test_step`` of the module's own is given.
        plan: What runs; None: that step decides.
    """

    analysis: AnalysisRun
    cfg: AnalysisCfg
    plan: Plan | None

    @classmethod
    def in_memory(cls, cfg: AnalysisCfg, module: ITModule) -> Job:
        """The analysis of a configuration, into its own cache.

        Raises:
            AnalysisError: The mode needs latent models and there are none.
            HookPointError: The configuration chooses latent activations that are not there.
            PlanError: The backend lacks what the analysis needs.
        """
        plan = None if has_own_step(module) else plan_of(cfg, module.latent_models)
        if plan is not None:
            plan.check_backend(module.backend, module.latent_models)
        urls = dashboard_urls(module.latent_models) if plan is not None and cfg.splices else {}
        kept = [item for known in (plan, cfg.plan) if known is not None for item in known.kept]
        objective = (measured_by(plan) if plan is not None else None) or objective_of(cfg.objective)
        cfg.analysis_cache.begin(answer_words(module), urls, kept, objective)
        return cls(analysis=AnalysisRun(name=str(cfg.mode), plan=plan, cfg=cfg), cfg=cfg, plan=plan)

    def lacks(self, number: int) -> bool:
        """Whether a batch is not there yet."""
        return True

    def at(self, number: int) -> AnalysisCfg:
        """What a step of the module's own is given for a batch."""
        return self.cfg

    def write(self, number: int, values: Mapping[str, Any], examples: int) -> None:
        """Store the results of a batch: values of the fields that the plan keeps."""
        self.cfg.analysis_cache.add(values, examples)

    def check_saved(self, number: int) -> None:
        """See that a step of the module's own saved a batch; in memory it need not."""

    def store(self) -> AnalysisStore | None:
        """The results; None: there are none."""
        return self.cfg.analysis_cache.store


class AnalysisEngine:
    """Runs analyses together, batch by batch, whoever has the batches; every way to run an analysis uses this.

    A step is one analysis on one batch, inside ``it_run_step``. A module with an ``analysis_test_step`` of its own runs
    that; any other asks the stack for the results (``it_run_analysis``). What the plans have in common is computed once
    for each batch. As a context manager it closes at the end all analyses that were opened, also after an error.
    """

    def __init__(self, module: ITModule, jobs: Iterable[Job], *, seed: int | None = None, asks: bool = True) -> None:
        """Name what runs; ``open`` begins.

        Args:
            module: A composed module.
            jobs: The analyses, in the order in which they are opened and run.
            seed: What is drawn follows from this, from the batch, and from the operation that draws; None: draws come
                from torch's generator as it is.
            asks: Whether the stack and a step of the module's own are asked for results; else plans alone run.
        """
        self.module = module
        self.jobs = list(jobs)
        self._seed, self._asks = seed, asks
        self._opened = OpenAnalyses(module)
        self._together: dict[tuple[int, ...], PlanRun] = {}

    @classmethod
    def in_memory(cls, module: ITModule, *cfgs: AnalysisCfg) -> AnalysisEngine:
        """Analyses whose results go to the caches of their configurations; see ``Job.in_memory`` for what is raised."""
        return cls(module, [Job.in_memory(cfg, module) for cfg in cfgs])

    def open(self) -> None:
        """Call ``it_open_analysis`` for each analysis."""
        for job in self.jobs:
            self._opened.open(job.analysis, job.store)

    def close(self, error: BaseException | None = None) -> None:
        """Call ``it_close_analysis`` for all that are open."""
        self._opened.close(error)

    def __enter__(self) -> AnalysisEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    def run(self, batches: Iterable[tuple[int, range, Any]], total: int, console: Console | None) -> None:
        """Analyse batches in evaluation mode.

        Args:
            batches: Number in the split, positions of the rows in the split, and batch.
            total: How many there will be.
            console: Where progress is shown; None: nowhere.
        """
        with eval_mode(self.module), progress_bar(console, shown=console is not None) as progress:
            task = progress.add_task(", ".join(job.analysis.name for job in self.jobs), total=total)
            for number, rows, batch in batches:
                with rows_named(rows, f"the split (batch {number})"):
                    self.analyse(number, batch)
                progress.advance(task)

    def analyse(self, number: int, batch: Any) -> None:
        """One step of each analysis that lacks a batch.

        Args:
            number: Of the batch in the split.
            batch: As the data module gives it; it is moved to the module's device.
        """
        jobs, batch = [job for job in self.jobs if job.lacks(number)], self.module.batch_to_device(batch)
        own = self._asks and has_own_step(self.module)
        taken = functools.cache(lambda: self._take(number, copy.copy(batch), jobs))
        for index, job in enumerate(jobs):
            if own:
                self._run_own_step(job, number, copy.copy(batch))
            else:
                step = functools.partial(self._step, job, index, number, taken)
                self.module.hook.it_run_step(module=self.module, step_name=ANALYSIS_STEP, step=step)

    def _run_own_step(self, job: Job, number: int, batch: Any) -> None:
        def drawn() -> None:
            draw_from(f"{self._seed} {number}")
            step()

        step = functools.partial(self.module.run_step, ANALYSIS_STEP, batch, number, analysis_cfg=job.at(number))
        if self._seed is None:
            step()
        else:
            with_own_draws(drawn, self._generators())
        job.check_saved(number)

    def _take(self, number: int, batch: Any, jobs: list[Job]) -> tuple[dict[str, Any], BatchRun]:
        """What operations can read of a batch, and the plans at that batch."""
        label_ids, labels = take_labels(self.module, batch)
        sources = sources_of(self.module, label_ids, labels, batch, number)
        together = tuple(map(id, jobs))
        if together not in self._together:
            self._together[together] = PlanRun([job.plan for job in jobs if job.plan is not None])
        seed = None if self._seed is None else f"{self._seed} {number}"
        return sources, self._together[together].on_batch(sources, len(labels), seed)

    def _step(self, job: Job, index: int, number: int, taken: Callable[[], tuple[dict[str, Any], BatchRun]]) -> None:
        """What is done with a batch where the module has no step of its own."""
        # trainers test in inference mode, whose tensors know no gradients
        with torch.inference_mode(mode=False) if torch.is_inference_mode_enabled() else contextlib.nullcontext():
            sources, shared = taken()
            compute = functools.partial(self._compute, functools.partial(shared.results, index))
            at_batch = job.analysis.at_batch(number, sources["inputs"], compute)
            values = analyse_batch(self.module, at_batch) if self._asks else compute()
            check_results(values)
            job.write(number, values, len(sources["inputs"]))

    def _compute(self, results: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if self._seed is None:
            return results()
        with model_lock(self.module.model):  # before it is this batch's turn to draw, which waits for no model
            return with_own_draws(results, self._generators())

    def _generators(self) -> list[torch.device]:
        """CUDA devices whose draws are put back beside those of the CPU."""
        device = torch.device(self.module.device)
        return [device] if device.type == "cuda" else []


def has_own_step(module: ITModule) -> bool:
    """Whether a module decides by a step of its own what an analysis does with a batch."""
    return hasattr(module, ANALYSIS_STEP)
