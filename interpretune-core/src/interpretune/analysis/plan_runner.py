"""Runs plans over a split of the session's data into result stores."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from rich.console import Console
from torch.utils.data import DataLoader, IterableDataset

from interpretune.analysis.identity import count_examples, identify_batch, identify_data
from interpretune.analysis.modes import AnalysisCfg, AnalysisMode
from interpretune.analysis.operations import Plan, PlanRun, plan_of
from interpretune.analysis.runner import ANALYSIS_STEP
from interpretune.analysis.steps import sources_of
from interpretune.analysis.store import AnalysisStore
from interpretune.analysis.stored_run import StoredRun, describe_run
from interpretune.errors import AnalysisError, ConfigurationError
from interpretune.loops.evaluate import eval_mode
from interpretune.progress import progress_bar

if TYPE_CHECKING:
    from interpretune.datamodule import ITDataModule
    from interpretune.module import ITModule

Analysis = Plan | AnalysisCfg | AnalysisMode | str
"""A plan, or a mode with or without settings."""


@frozen
class DryRun:
    """What a run would do.

    Attributes:
        plan: The plan in words.
        folder: Where its store goes.
        batches: Batches of the split.
        remaining: Batches that are not there yet.
        examples: Rows.
        forwards: Forward passes of a batch that remain, replays not counted.
        bytes: Estimated size of the store.
        seconds: Estimated duration of what remains.
    """

    plan: str
    folder: Path
    batches: int
    remaining: int
    examples: int
    forwards: float
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.plan}\n\n{self.folder}\n{self.examples} rows in {self.batches} batches, {self.remaining} to run: "
            f"{self.forwards:g} forward passes of a batch beside replays, about {self.seconds:.0f} s; "
            f"about {self.bytes / 1e6:.1f} MB when complete"
        )


class AnalysisRunner:
    """Runs analyses over the test batches of a session, several in one pass, and goes on where a run was stopped.

    Each analysis has a store of its own below ``root``, named after the analysis and its key. The key is a hash of
    everything that changes the results: operations, settings and source, weights of the model and of the latent
    models, the content of the batches, seed, and versions. What is there already is not run again.

    With several processes (of ``torch.distributed``, or of ``torchrun``) each runs its share of the batches and writes
    its own shards; they meet in the file system only, and whoever finds all batches there completes the store.

    It runs plans. An ``analysis_test_step`` of the module's own is what ``run_analysis`` runs.
    """

    def __init__(
        self,
        module: ITModule | None = None,
        datamodule: ITDataModule | None = None,
        root: str | Path = "analyses",
        *,
        limit: int | None = None,
        seed: int = 0,
        console: Console | None = None,
        model: ITModule | None = None,
    ) -> None:
        """Call it as ``AnalysisRunner(**session, root=...)``.

        Args:
            module: The session's module.
            datamodule: The session's data module.
            root: Folder of the stores.
            limit: Rows to analyse, rounded up to whole batches; None: all.
            seed: Of operations that draw with torch; each of them has a seed of its own for each batch.
            console: Where progress is shown; None: nowhere.
            model: The module, under framework adapters that call it so.

        Raises:
            ConfigurationError: The module or the data module is missing, or the limit is not positive.
        """
        owner = module if module is not None else model
        if owner is None or datamodule is None:
            raise ConfigurationError(
                "AnalysisRunner needs a module and a data module: AnalysisRunner(**session, root=...)."
            )
        if limit is not None and limit < 1:
            raise ConfigurationError(f"AnalysisRunner: limit is {limit}; give a number of rows from 1.")
        self.module = owner
        self.datamodule = datamodule
        self.root = Path(root)
        self.seed = seed
        self._limit = limit
        self._console = console
        self._rank, self._world_size = _process()

    def run(self, analyses: Mapping[str, Analysis]) -> dict[str, AnalysisStore]:
        """Run what is not there yet.

        Args:
            analyses: By name; names become folder names.

        Returns:
            The stores by name. In one of several processes, a store may lack batches of processes that still run.

        Raises:
            PlanError: An analysis does not fit together, or needs what the session has not.
            StoreError: A store cannot be written, or another process writes it.
            AnalysisError: The loader does not give the same batches twice.
        """
        jobs = self._jobs(analyses)
        with contextlib.ExitStack() as stack:
            writing = [job for job in jobs if not job.is_complete]
            for job in writing:
                stack.enter_context(job.open(self._rank, self._world_size))
            if writing:
                self._run_batches(writing)
            for job in writing:
                job.complete()
        return {job.name: AnalysisStore.open(job.folder) for job in jobs}

    def dry_run(self, analyses: Mapping[str, Analysis]) -> dict[str, DryRun]:
        """What ``run`` would do; the first batch is run to estimate, and nothing is written.

        Raises:
            PlanError: As ``run``.
            AnalysisError: As ``run``.
        """
        told = {}
        for job in self._jobs(analyses):
            store, writer = AnalysisStore.in_memory(job.plan.kept)
            job.writer = writer
            start = time.perf_counter()
            self._run_batches([job], only_first=True, show=False)
            seconds = time.perf_counter() - start
            first = sum(item.nbytes for item in store.record_batches())
            remaining = len(job.data.sizes) - job.batches_done
            told[job.name] = DryRun(
                plan=str(job.plan),
                folder=job.folder,
                batches=len(job.data.sizes),
                remaining=remaining,
                examples=sum(job.data.sizes),
                forwards=job.plan.forwards * remaining,
                bytes=round(first * sum(job.data.sizes) / job.data.sizes[0]),
                seconds=seconds * remaining,
            )
        return told

    # ------------------------------------------------------------------------------------------------------- the pass

    def _run_batches(self, jobs: Sequence[StoredRun], *, only_first: bool = False, show: bool = True) -> None:
        """One pass over the batches that some job lacks."""
        numbers = [0] if only_first else range(self._rank, len(jobs[0].data.sizes), self._world_size)
        lacking = {i: [job for job in jobs if job.writer is not None and i not in job.writer.done] for i in numbers}
        todo = [i for i in numbers if lacking[i]]
        runs: dict[tuple[str, ...], PlanRun] = {}
        hook = self.module._hook
        opened = []
        try:
            for job in jobs:
                hook.it_open_analysis(module=self.module, analysis_cfg=job.plan)
                opened.append(job)
            shown = show and self._console is not None
            with eval_mode(self.module), progress_bar(self._console, shown=shown) as progress:
                task = progress.add_task(", ".join(job.name for job in jobs), total=len(todo))
                for number, batch in _batches(self.datamodule.test_dataloader(), todo):
                    here = lacking[number]
                    names = tuple(job.name for job in here)
                    if names not in runs:
                        runs[names] = PlanRun([job.plan for job in here])
                    run = runs[names]
                    if identify_batch(batch) != here[0].data.batches[number]:
                        raise AnalysisError(
                            f"Batch {number} is not what it was when the loader was gone through before: the loader "
                            "shuffles its rows or draws at random. Results could not be assigned to rows, and a run "
                            "that was stopped could not go on. Give a test_dataloader that gives the same batches "
                            "each time."
                        )
                    moved = self.module.batch_to_device(batch)
                    hook.it_run_step(
                        module=self.module,
                        step_name=ANALYSIS_STEP,
                        step=_step(self.module, run, here, moved, number, self.seed),
                    )
                    progress.advance(task)
        finally:
            for job in opened:
                hook.it_close_analysis(module=self.module, analysis_cfg=job.plan)

    # ----------------------------------------------------------------------------------------------------------- jobs

    def _jobs(self, analyses: Mapping[str, Analysis]) -> list[StoredRun]:
        plans = {name: self._plan(analysis) for name, analysis in analyses.items()}
        for name, plan in plans.items():
            if not name or Path(name).name != name or name.startswith("."):
                raise ConfigurationError(f"The analysis {name!r} names a folder; use letters, digits, - and _ only.")
            plan.check_backend(self.module.backend, self.module.latent_models)
        with eval_mode(self.module):
            data = identify_data(batch for _, batch in _batches(self.datamodule.test_dataloader(), None, self._limit))
        if not data.sizes:
            raise AnalysisError("The test loader has no batches. Does the split have rows?")
        about = describe_run(self.module, self.datamodule, data, self.seed)
        return [StoredRun.of(name, plan, data, about, self.root) for name, plan in plans.items()]

    def _plan(self, analysis: Analysis) -> Plan:
        if isinstance(analysis, Plan):
            return analysis
        cfg = analysis if isinstance(analysis, AnalysisCfg) else AnalysisCfg(mode=AnalysisMode(analysis))
        return plan_of(cfg, self.module.latent_models)


def _step(
    module: ITModule, run: PlanRun, jobs: Sequence[StoredRun], batch: Any, number: int, seed: int
) -> Callable[[], None]:
    def step() -> None:
        label_ids, labels = module.labels_to_ids(batch.pop("labels"))
        sources = sources_of(module, label_ids, labels, batch, number)
        devices = [module.device] if torch.device(module.device).type == "cuda" else []
        with torch.random.fork_rng(devices):
            results = run.run(sources, len(labels), seed=f"{seed} {number}")
        for job, values in zip(jobs, results, strict=True):
            job.write(number, values)

    return step


def _batches(
    loader: Any, numbers: Sequence[int] | None, limit: int | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Some batches of a loader with their index, in order; what is not wanted is not even read where that is possible.

    Args:
        loader: A data loader.
        numbers: Those wanted; None: all.
        limit: Most examples, up to whole batches.
    """
    sampler = getattr(loader, "batch_sampler", None)
    iterable = isinstance(getattr(loader, "dataset", None), IterableDataset)
    if numbers is not None and type(loader) is DataLoader and sampler is not None and not iterable:
        wanted = set(numbers)
        rows = [indices for number, indices in enumerate(sampler) if number in wanted]
        part: DataLoader[Any] = DataLoader(
            loader.dataset,
            batch_sampler=rows,
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
        yield from zip(sorted(wanted), part, strict=True)
        return
    seen = 0
    for number, batch in enumerate(loader):
        if (limit is not None and seen >= limit) or (numbers is not None and number > max(numbers, default=-1)):
            return
        seen += count_examples(batch)
        if numbers is None or number in numbers:
            yield number, batch


def _process() -> tuple[int, int]:
    """Rank and number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
