"""Runs plans over a split of the session's data into result stores."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch.utils.data import DataLoader, IterableDataset

from interpretune.analysis.dry_run import DryRun
from interpretune.analysis.engine import AnalysisEngine
from interpretune.analysis.identity import DataIdentity, count_examples, identify_batch, identify_data
from interpretune.analysis.memory_estimate import MemoryWatch
from interpretune.analysis.mode_plans import mode_of, plan_of
from interpretune.analysis.modes import AnalysisCfg, AnalysisMode
from interpretune.analysis.question_cfg import QuestionCfg
from interpretune.analysis.question_run import QuestionRun
from interpretune.analysis.stored_run import StoredRun, describe_run
from interpretune.config.checked import check_argument
from interpretune.errors import AnalysisError, ConfigurationError, UnknownContentError
from interpretune.hashing.content_hash import WHAT_TO_DO
from interpretune.operations import Plan
from interpretune.questions.in_words import call_in_words
from interpretune.store import AnalysisStore, StoreWriter
from interpretune.system.ranks import rank_and_processes
from interpretune.system.torch_state import eval_mode

if TYPE_CHECKING:
    from interpretune.session.datamodule import ITDataModule
    from interpretune.session.module import ITModule

Analysis = Plan | AnalysisCfg | AnalysisMode | str | QuestionCfg
"""A plan, a mode with or without settings, or a question."""


class AnalysisRunner:
    """Runs analyses over the test batches of a session, several in one pass, and goes on where a run was stopped.

    Each analysis has a store of its own below ``root``, named after the analysis and its key. The key is a hash of
    everything that changes the results: operations, settings and source, weights of the model and of the latent
    models, the content of the batches, seed, and versions. What is there already is not run again.

    With several processes (of ``torch.distributed``, or of ``torchrun``) each runs its share of the batches and writes
    its own shards; they meet in the file system only, and whoever finds all batches there completes the store.

    A module with an ``analysis_test_step`` of its own is asked to run it, once for each analysis and batch, each time
    with an ``AnalysisCfg`` whose cache saves into the store of that analysis. Its code counts in the key.

    Attributes:
        found: Names of the analyses that the last ``run`` found complete and did not run again.
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
        made_by: Mapping[str, Any] | None = None,
    ) -> None:
        """Call it as ``AnalysisRunner(**session, root=...)``.

        Args:
            module: The session's module.
            datamodule: The session's data module.
            root: Folder of the stores.
            limit: Rows to analyse, and held-out rows, rounded up to whole batches; None: all.
            seed: Of operations that draw with torch; each of them has a seed of its own for each batch.
            console: Where progress is shown; None: nowhere.
            model: The module, under framework adapters that call it so.
            made_by: What manifests note of how the stores came to be, such as the command and its configuration; no
                result depends on it. None: the call, as far as it is known.

        Raises:
            ConfigurationError: The module or the data module is missing, the limit is not positive, or an argument has
                another type.
        """
        owner = module if module is not None else model
        if owner is None or datamodule is None:
            raise ConfigurationError(
                "AnalysisRunner needs a module and a data module: AnalysisRunner(**session, root=...)."
            )
        check_argument("AnalysisRunner: limit, a number of rows,", limit, int | None)
        check_argument("AnalysisRunner: root, the folder of the stores,", root, str | Path)
        check_argument("AnalysisRunner: seed", seed, int)
        if limit is not None and limit < 1:
            raise ConfigurationError(f"AnalysisRunner: limit is {limit}; give a number of rows from 1.")
        self.module = owner
        self.datamodule = datamodule
        self.root = Path(root)
        self.seed = seed
        self._limit = limit
        self._made_by = made_by
        self._console = console
        self._rank, self._world_size = _process()
        self.found: tuple[str, ...] = ()

    def run(self, analyses: Mapping[str, Analysis]) -> dict[str, AnalysisStore]:
        """Run what is not there yet; names of analyses become folder names.

        Returns:
            The stores by name. In one of several processes, a store may lack batches of processes that still run.

        Raises:
            PlanError: An analysis does not fit together, or needs what the session has not.
            StoreError: A store cannot be written, or another process writes it.
            AnalysisError: The loader does not give the same batches twice, or a step of the module's own does not
                save what its analysis keeps.
        """
        questions, jobs = self._questions(analyses), self._jobs(analyses)
        writing = [job for job in jobs if not job.is_complete]
        engine = AnalysisEngine(self.module, writing, seed=self.seed)
        with engine, contextlib.ExitStack() as writers:  # analyses are closed when nothing is written any more
            for job in writing:
                writers.enter_context(job.open(self._rank, self._world_size))
            engine.open()
            if writing:
                data = writing[0].data
                own = range(self._rank, len(data.sizes), self._world_size)
                lacking = [number for number in own if any(job.lacks(number) for job in writing)]
                engine.run(self._batches(data, lacking), len(lacking), self._console)
            for job in writing:
                job.complete()
        stores = {job.analysis.name: AnalysisStore.open(job.folder) for job in jobs}
        found = {job.analysis.name for job in jobs if job not in writing}
        for item in questions:
            stores[item.name], computed = item.run(
                self.module, shown=self._console is not None, rank=self._rank, processes=self._world_size
            )
            if not computed:
                found.add(item.name)
        self.found = tuple(name for name in analyses if name in found)
        if self._console is not None:
            for name in self.found:
                self._console.print(
                    f"{name}: found in {stores[name].folder}, not run again", style="dim", soft_wrap=True
                )
        return {name: stores[name] for name in analyses}

    def dry_run(self, analyses: Mapping[str, Analysis]) -> dict[str, DryRun]:
        """What ``run`` would do; the first batch is run to estimate, and nothing is written.

        That is no analysis: of the hooks only ``it_run_step`` is called, and plans are run, not a module's own step.

        Raises:
            PlanError: As ``run``.
            AnalysisError: As ``run``.
        """
        told = {item.name: item.dry_run() for item in self._questions(analyses)}
        for job in self._jobs(analyses):
            store, job.writer = StoreWriter.in_memory(job.plan.kept)
            start = time.perf_counter()
            engine = AnalysisEngine(self.module, [job], seed=self.seed, asks=False)
            watch = MemoryWatch(self.module)
            with watch.first_batch():
                engine.run(self._batches(job.data, [0]), 1, None)
            seconds = time.perf_counter() - start
            first = sum(item.nbytes for item in store.record_batches())
            remaining = len(job.data.sizes) - job.batches_done
            told[job.analysis.name] = DryRun(
                plan=str(job.plan),
                folder=job.folder,
                batches=len(job.data.sizes),
                remaining=remaining,
                examples=sum(job.data.sizes),
                forwards=job.plan.forwards * remaining,
                bytes=round(first * sum(job.data.sizes) / job.data.sizes[0]),
                seconds=seconds * remaining,
                memory=watch.estimates(job.data.slots),
            )
        return {name: told[name] for name in analyses}

    # ------------------------------------------------------------------------------------------------------- the pass

    def _batches(self, data: DataIdentity, numbers: Sequence[int]) -> Iterator[tuple[int, range, Any]]:
        """Some batches with the positions of their rows, each held to what it was before."""
        for number, batch in _batches(self.datamodule.test_dataloader(), numbers):
            if identify_batch(batch) != data.batches[number]:
                raise AnalysisError(
                    f"Batch {number} is not what it was when the loader was gone through before: the loader "
                    "shuffles its rows or draws at random. Results could not be assigned to rows, and a run "
                    "that was stopped could not go on. Give a test_dataloader that gives the same batches "
                    "each time."
                )
            yield number, data.examples(number), batch

    # ----------------------------------------------------------------------------------------------------------- jobs

    def _questions(self, analyses: Mapping[str, Analysis]) -> list[QuestionRun]:
        check_argument("AnalysisRunner: the analyses by name", analyses, Mapping[str, Analysis])
        for name in analyses:
            if not name or Path(name).name != name or name.startswith("."):
                raise ConfigurationError(f"The analysis {name!r} names a folder; use letters, digits, - and _ only.")
        asked = {name: item for name, item in analyses.items() if isinstance(item, QuestionCfg)}
        return [
            QuestionRun.of(
                name,
                cfg,
                self.module,
                self.datamodule,
                root=self.root,
                limit=self._limit,
                made_by=self._made_by or {"call": f"AnalysisRunner(**session).run({{{name!r}: {_call(cfg)}}})"},
            )
            for name, cfg in asked.items()
        ]

    def _jobs(self, analyses: Mapping[str, Analysis]) -> list[StoredRun]:
        cfgs = {name: _cfg_of(item) for name, item in analyses.items() if not isinstance(item, QuestionCfg)}
        if not cfgs:
            return []
        plans = {name: plan_of(cfg, self.module.latent_models) for name, cfg in cfgs.items()}
        for plan in plans.values():
            plan.check_backend(self.module.backend, self.module.latent_models)
        with eval_mode(self.module):
            data = identify_data(batch for _, batch in _batches(self.datamodule.test_dataloader(), None, self._limit))
        if not data.sizes:
            raise AnalysisError("The test loader has no batches. Does the split have rows?")
        about = describe_run(self.module, self.datamodule, data, self.seed)
        if self._made_by is not None:
            about["made_by"] = self._made_by
        jobs = [
            StoredRun.of(name, plan, data, about, self.root, cfgs[name], given=not isinstance(analyses[name], Plan))
            for name, plan in plans.items()
        ]
        unknown = [text for job in jobs for text in job.about["unknown"]]
        if unknown and self._world_size > 1:
            raise UnknownContentError(
                "Several processes meet in one store by what its results depend on, and that cannot be known: "
                f"{unknown[0]} {WHAT_TO_DO}"
            )
        for job in [job for job in jobs if job.about["unknown"]][:1]:  # the others have the same reasons
            job.warn_of_unknown()
        return jobs


def _call(cfg: QuestionCfg) -> str:
    return call_in_words("QuestionCfg", QuestionCfg, vars(cfg))


def _cfg_of(analysis: Plan | AnalysisCfg | AnalysisMode | str) -> AnalysisCfg:
    if isinstance(analysis, Plan):
        return AnalysisCfg(mode=mode_of(analysis), plan=analysis)
    return analysis if isinstance(analysis, AnalysisCfg) else AnalysisCfg(mode=analysis)  # names become modes


def _batches(
    loader: Any, numbers: Sequence[int] | None, limit: int | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Batches with their index, in order: those wanted, or all; up to ``limit`` rows, rounded up to whole batches."""
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
            generator=loader.generator or torch.Generator(),  # a loader without one moves torch's random state
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
    return rank_and_processes()
