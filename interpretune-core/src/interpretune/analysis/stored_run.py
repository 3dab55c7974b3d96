"""One analysis of a run and its store: what it is called, what it depends on, when it is complete."""

from __future__ import annotations

import copy
import hashlib
import json
import secrets
import warnings
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define

from interpretune.analysis.analysis_run import AnalysisRun
from interpretune.analysis.batch import AnalysisBatch
from interpretune.analysis.cache import AnalysisCache, SaveCfg
from interpretune.analysis.engine import Job, has_own_step
from interpretune.analysis.finite_results import check_results
from interpretune.analysis.identity import DataIdentity, identify_stack, identify_task, library_versions, module_source
from interpretune.analysis.mode_plans import measured_by
from interpretune.analysis.modes import AnalysisCfg
from interpretune.analysis.offered_modes import OfferedMode
from interpretune.backends.identity import identify_latents, identify_model
from interpretune.errors import AnalysisError, NotReusedWarning, StoreBusyError
from interpretune.hashing.content_hash import WHAT_TO_DO, content_hash
from interpretune.operations import Plan, run_summaries
from interpretune.questions.in_words import told
from interpretune.session.answers import answer_words
from interpretune.session.question_rows import source_in_words
from interpretune.session.step_routing import ANALYSIS_STEP
from interpretune.store import AnalysisStore, Manifest, StoreWriter
from interpretune.store.contents import batches_there
from interpretune.store.fields import Per
from interpretune.store.folder import MANIFEST
from interpretune.store.sealing import move_journals
from interpretune.store.store import BatchSequence
from interpretune.system.model_lock import model_lock

if TYPE_CHECKING:
    from interpretune.session.datamodule import ITDataModule
    from interpretune.session.module import ITModule

MOST_WARNED = 5


def describe_run(module: ITModule, datamodule: ITDataModule, data: DataIdentity, seed: int) -> dict[str, Any]:
    """What a manifest says of a run: model, latent models, task, data, configurations, seed, stack and versions."""
    assert module.context is not None, "a composed module has a context"
    cfg = datamodule.itdm_cfg
    rows = source_in_words(cfg.rows)
    with model_lock(module.model):  # no other thread's edits are in force
        model = identify_model(module.backend, module_source(module))
        parts = {"model": model, "task": identify_task(module), "code": identify_stack(module)}
        latents = [identify_latents(item) for item in module.latent_models]
    return {
        **{name: part.about for name, part in parts.items()},
        "latent_models": [item.about for item in latents],
        "unknown": list(dict.fromkeys(text for part in (*parts.values(), *latents) for text in part.unknown)),
        "data": {
            "source": told(cfg.data if cfg.data is not None else rows),
            "loader": "test_dataloader",
            "fingerprint": data.fingerprint,
            "examples": sum(data.sizes),
        },
        "configs": {"module": told(module.it_cfg), "datamodule": {**told(cfg), "rows": told(rows)}},
        **({"answers": list(answer_words(module))} if cfg.rows is not None else {}),
        "seed": seed,
        "stack": list(module.context.names),
        "versions": library_versions(module),
        **({"step": {"name": f"{type(module).__qualname__}.{ANALYSIS_STEP}"}} if has_own_step(module) else {}),
    }


@define(eq=False, kw_only=True)
class StoredRun(Job):
    """An analysis whose results go to a store on disk.

    Attributes:
        plan: What runs, and what is kept.
        data: On what.
        about: What the manifest says of it.
        folder: The store: name and key below the root of the run.
        key: Hash of everything that the results depend on.
        writer: Open while batches are written.
    """

    plan: Plan
    data: DataIdentity
    about: Mapping[str, Any]
    folder: Path
    key: str
    writer: StoreWriter | None = None

    @classmethod
    def of(
        cls,
        name: str,
        plan: Plan,
        data: DataIdentity,
        about: Mapping[str, Any],
        root: Path,
        cfg: AnalysisCfg,
        *,
        given: bool,
    ) -> StoredRun:
        """The run of a plan; ``about`` comes from ``describe_run``, ``given`` is whether the caller gave ``cfg``."""
        if "step" in about:  # which may read all that the configuration says
            beside = {name: value for name, value in vars(cfg).items() if name not in AnalysisCfg.__dataclass_fields__}
            read = content_hash([type(cfg), str(cfg.mode), beside], f"The configuration of {name}")
            step = {**about["step"], "cfg": read.sha256}
            about = {**about, "step": step, "unknown": [*about["unknown"], *read.unknown]}
        depends = {
            "plan": plan.key,
            "data": data.fingerprint,
            "model": about["model"]["sha256"],
            "latent_models": [item | {"dashboard_url": None} for item in about["latent_models"]],
            **{part: about[part] for part in ("task", "code", "seed", "versions", "step") if part in about},
            "alone": secrets.token_hex() if about["unknown"] else "",  # found by nobody again
        }
        key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        operations = [
            {
                "name": op.name,
                "reads": list(op.reads),
                "writes": [item.name for item in op.writes],
                "options": told(op.options),
            }
            for op in plan.operations
        ]
        known = sorted(root.glob(f"*-{key[:12]}"))  # the same analysis may have had another name
        folder = known[0] if known else root / f"{name}-{key[:12]}"
        own = "step" in about
        analysis = AnalysisRun(name=name, plan=None if own else plan, cfg=cfg if given else None, folder=folder)
        objective = measured_by(plan)
        measured = {} if objective is None else {"objective": objective.name, "unit": objective.unit}
        about = {"analysis": name, **measured, **about, "plan": operations}
        if isinstance(cfg.mode, OfferedMode):
            offer = cfg.mode.offer
            about["mode"] = {"name": offer.name, "distribution": offer.distribution, "version": offer.version}
        run = cls(analysis=analysis, cfg=copy.copy(cfg), plan=plan, data=data, about=about, folder=folder, key=key)
        run.cfg.analysis_cache = _StepCache(run, cfg.analysis_cache.save_cfg)
        return run

    def warn_of_unknown(self) -> None:
        """Say that nothing that is there can be used, since something that results depend on is not known."""
        told = "\n".join(f"- {text}" for text in self.about["unknown"][:MOST_WARNED])
        warnings.warn(
            f"The results of {self.analysis.name} are not looked for among those that are there, and nobody will find "
            f"them again, since it cannot be known what they depend on:\n{told}\n{WHAT_TO_DO}",
            NotReusedWarning,
            stacklevel=4,
        )

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing to do."""
        there = self._there()
        return there is not None and there.complete

    @property
    def batches_done(self) -> int:
        """Number of batches that are there."""
        there = self._there()
        if there is None:
            return 0
        return len(self.data.sizes) if there.complete else len(batches_there(self.folder))

    def _there(self) -> Manifest | None:
        """The manifest of what is there of this run; a folder is found by the beginning of its key only."""
        there = Manifest.read(self.folder) if (self.folder / MANIFEST).exists() else None
        return there if there is not None and there.key == self.key else None

    def open(self, rank: int, world_size: int) -> StoreWriter:
        """Begin to write, or go on; ``StoreError`` if that cannot be, or another process writes."""
        self.writer = StoreWriter.create(
            self.folder,
            self.plan.kept,
            self.about,
            key=self.key,
            n_batches=len(self.data.sizes),
            rank=rank,
            world_size=world_size,
        )
        return self.writer

    def lacks(self, number: int) -> bool:
        """Whether a batch is not there yet."""
        return self.writer is not None and number not in self.writer.done

    def write(self, number: int, values: Mapping[str, Any], examples: int) -> None:
        """Write one batch."""
        assert self.writer is not None
        self.writer.write(number, self.data.examples(number), values)

    def at(self, number: int) -> AnalysisCfg:
        """What a step of the module's own is given for a batch: its cache saves that batch into the store."""
        cache: Any = self.cfg.analysis_cache
        cache.number = number
        return self.cfg

    def save(self, number: int, batch: AnalysisBatch) -> None:
        """Write what a step of the module's own saves; ``AnalysisError`` if it is not that, or was saved before."""
        values = batch.as_fields()
        check_results(values)
        kept = [item.name for item in self.plan.kept if item.per is not Per.run]
        missing = [name for name in kept if name not in values]
        beside = [name for name in values if name not in self.plan.fields]
        if missing or beside or not self.lacks(number):
            wrong = f"without {', '.join(missing)}" if missing else f"with {', '.join(beside)}" if beside else "again"
            raise AnalysisError(
                f"{self.about['step']['name']} saved batch {number} of the analysis {self.analysis.name} {wrong}. Into "
                f"a store each batch is saved once, with what its plan keeps: {', '.join(kept)}. To keep something "
                "else, run plan_of(AnalysisCfg(...), module.latent_models, keep=[...])."
            )
        self.write(number, {name: values[name] for name in kept}, len(batch))

    def check_saved(self, number: int) -> None:
        """Refuse to go on where a step of the module's own saved no batch (``AnalysisError``)."""
        if self.lacks(number):
            raise AnalysisError(
                f"{self.about['step']['name']} saved nothing for batch {number} of the analysis {self.analysis.name}: "
                "call analysis_cfg.analysis_cache.save(analysis_batch, batch, ...) in each step."
            )

    def store(self) -> AnalysisStore:
        """What is there."""
        return AnalysisStore.open(self.folder)

    def complete(self) -> None:
        """End writing; where all batches of all processes are there, make the tables and seal the store."""
        assert self.writer is not None
        self.writer.close()
        if self.writer.missing():
            return  # another process has them, and completes the store
        try:
            move_journals(self.folder)
        except StoreBusyError:
            return  # another process is about to close, and then does this
        store = AnalysisStore.open(self.folder)
        names = [item.name for item in self.plan.kept if item.per is not Per.run]
        columns = {name: BatchSequence(store, [name], itemgetter(name)) for name in names}
        for name, table in run_summaries(self.plan, columns).items():
            self.writer.write_table(name, table)
        self.writer.seal()


class _StepCache(AnalysisCache):
    """What a step of the module's own saves to: the store of its analysis, where the results can be read at the end."""

    def __init__(self, run: StoredRun, save_cfg: SaveCfg) -> None:
        super().__init__(save_cfg)
        self.analysis = run.analysis
        self.number = 0
        self._run = run

    def append(self, batch: AnalysisBatch) -> None:
        """Write all results of one batch."""
        self._run.save(self.number, batch)
