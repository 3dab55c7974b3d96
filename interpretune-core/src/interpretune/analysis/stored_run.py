"""One analysis of a run and its store: what it is called, what it depends on, when it is complete."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define

from interpretune.analysis.analysis_run import AnalysisRun
from interpretune.analysis.identity import (
    DataIdentity,
    identify_latents,
    identify_model,
    identify_stack,
    identify_task,
    library_versions,
    without_folders,
)
from interpretune.errors import NotReusedWarning, StoreBusyError
from interpretune.hashing.content_hash import WHAT_TO_DO
from interpretune.operations import Plan, run_summaries
from interpretune.store import AnalysisStore, Manifest, StoreWriter
from interpretune.store.contents import batches_there
from interpretune.store.fields import Per
from interpretune.store.folder import MANIFEST
from interpretune.store.sealing import move_journals
from interpretune.store.store import BatchSequence
from interpretune.system.model_lock import model_lock

if TYPE_CHECKING:
    from interpretune.analysis.modes import AnalysisCfg
    from interpretune.session.datamodule import ITDataModule
    from interpretune.session.module import ITModule

MOST_WARNED = 5
MOST_TOLD, LONGEST_TOLD = 100, 200
"""Entries of a list, and letters of a setting in words, that a manifest notes."""


def describe_run(module: ITModule, datamodule: ITDataModule, data: DataIdentity, seed: int) -> dict[str, Any]:
    """What a manifest says of a run: model, latent models, task, data, configurations, seed, stack and versions."""
    assert module.context is not None, "a composed module has a context"
    with model_lock(module.model):  # no other thread's edits are in force
        parts = {"model": identify_model(module), "task": identify_task(module), "code": identify_stack(module)}
        latents = [identify_latents(item) for item in module.latent_models]
    return {
        **{name: part.about for name, part in parts.items()},
        "latent_models": [item.about for item in latents],
        "unknown": list(dict.fromkeys(text for part in (*parts.values(), *latents) for text in part.unknown)),
        "data": {
            "source": _told(datamodule.itdm_cfg.data),
            "loader": "test_dataloader",
            "fingerprint": data.fingerprint,
            "examples": sum(data.sizes),
        },
        "configs": {"module": _told(module.it_cfg), "datamodule": _told(datamodule.itdm_cfg)},
        "seed": seed,
        "stack": list(module.context.names),
        "versions": library_versions(module),
    }


@define(eq=False)
class StoredRun:
    """An analysis and the store that it goes to.

    Attributes:
        name: Name of the analysis.
        plan: What runs.
        data: On what.
        about: What the manifest says of it.
        folder: The store: name and key below the root of the run.
        key: Hash of everything that the results depend on.
        cfg: The configuration that the plan was made of; None: there is none.
        writer: Open while batches are written.
    """

    name: str
    plan: Plan
    data: DataIdentity
    about: Mapping[str, Any]
    folder: Path
    key: str
    cfg: AnalysisCfg | None = None
    writer: StoreWriter | None = None

    @classmethod
    def of(
        cls,
        name: str,
        plan: Plan,
        data: DataIdentity,
        about: Mapping[str, Any],
        root: Path,
        cfg: AnalysisCfg | None = None,
    ) -> StoredRun:
        """The run of a plan.

        Args:
            name: Name of the analysis.
            plan: What runs.
            data: On what.
            about: See ``describe_run``.
            root: Folder of all stores.
            cfg: What the plan was made of; None: it was given as a plan.
        """
        depends = {
            "plan": plan.key,
            "data": data.fingerprint,
            "model": about["model"]["sha256"],
            "latent_models": [item | {"dashboard_url": None} for item in about["latent_models"]],
            **{part: about[part] for part in ("task", "code", "seed", "versions")},
            "alone": secrets.token_hex() if about["unknown"] else "",  # found by nobody again
        }
        key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        operations = [
            {
                "name": op.name,
                "reads": list(op.reads),
                "writes": [item.name for item in op.writes],
                "options": _told(op.options),
            }
            for op in plan.operations
        ]
        known = sorted(root.glob(f"*-{key[:12]}"))  # the same analysis may have had another name
        folder = known[0] if known else root / f"{name}-{key[:12]}"
        return cls(name, plan, data, {"analysis": name, **about, "plan": operations}, folder, key, cfg)

    @property
    def analysis(self) -> AnalysisRun:
        """What hooks are told of it."""
        return AnalysisRun(name=self.name, plan=self.plan, cfg=self.cfg, folder=self.folder)

    def warn_of_unknown(self) -> None:
        """Say that nothing that is there can be used, since something that results depend on is not known."""
        told = "\n".join(f"- {text}" for text in self.about["unknown"][:MOST_WARNED])
        warnings.warn(
            f"The results of {self.name} are not looked for among those that are there, and nobody will find them "
            f"again, since it cannot be known what they depend on:\n{told}\n{WHAT_TO_DO}",
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
        """Begin to write, or go on.

        Raises:
            StoreError: The store cannot be written, or another process writes it.
        """
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

    def write(self, number: int, values: Mapping[str, Any]) -> None:
        """Write one batch."""
        assert self.writer is not None
        self.writer.write(number, self.data.examples(number), values)

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


def _told(value: Any) -> Any:
    """A setting as JSON has it; what JSON has not, in words."""
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (str, Path)):
        return without_folders(str(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _told(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _told(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)) and len(value) <= MOST_TOLD:
        return [_told(item) for item in value]
    words = repr(value)
    return words if len(words) <= LONGEST_TOLD else type(value).__name__
