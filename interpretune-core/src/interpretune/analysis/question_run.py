"""Questions among the analyses of a run: what ``effects`` asks, over the rows of the session, into a store."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from interpretune.analysis.analysis_run import AnalysisRun
from interpretune.analysis.dry_run import DryRun
from interpretune.analysis.identity import module_source
from interpretune.analysis.memory_estimate import MemoryWatch
from interpretune.analysis.open_analyses import OpenAnalyses
from interpretune.analysis.question_cfg import CircuitCfg, EvidenceCfg, QuestionCfg, rows_given
from interpretune.backends.identity import without_folders
from interpretune.circuits.gathering import circuit_of, parts_of_circuit, seconds_of_circuit
from interpretune.evidence.gathering import evidence_of, parts_to_gather, seconds_of
from interpretune.operations.objectives import check_gradient
from interpretune.questions.answering import Share
from interpretune.questions.question import Question
from interpretune.questions.result import Effects
from interpretune.questions.sources import read_rows
from interpretune.store import AnalysisStore, Manifest
from interpretune.store.contents import batches_there
from interpretune.store.folder import MANIFEST
from interpretune.store.tables import note
from interpretune.system.ranks import rank_zero_warn

if TYPE_CHECKING:
    from interpretune.session.datamodule import ITDataModule
    from interpretune.session.module import ITModule


def _slots_of_batches(question: Question) -> list[int]:
    """Rows times the tokens of the longest, answers included, of each batch."""
    rows, size = question.rows, question.batch_size
    parts = (rows[first : first + size] for first in range(0, len(rows), size))
    return [
        len(part) * max(len(row.tokens) + max((len(ids) for ids in row.answers), default=0) for row in part)
        for part in parts
    ]


def _whole_batches(limit: int | None, size: int) -> int | None:
    return None if limit is None else -(-limit // size) * size


@frozen(eq=False)
class QuestionRun:
    """A question of a run and its store, and what is gathered after its effects."""

    name: str
    question: Question
    folder: Path
    about: Mapping[str, Any]
    evidence: EvidenceCfg | None
    circuit: CircuitCfg | None

    @classmethod
    def of(
        cls,
        name: str,
        cfg: QuestionCfg,
        module: ITModule,
        datamodule: ITDataModule,
        *,
        root: Path,
        limit: int | None,
        made_by: Mapping[str, Any],
    ) -> QuestionRun:
        """Ask a question of a session's backend about rows of its data; raises what ``effects`` raises."""
        assert module.context is not None, "a composed module has a context"
        split, size = cfg.split or datamodule.test_split, datamodule.itdm_cfg.eval_batch_size
        own = min((item for item in (cfg.limit, limit) if item is not None), default=None)
        rows = datamodule.rows(split)[: _whole_batches(own, size)]
        question = cfg.question(module, datamodule, rows)
        with question.held():
            key = question.key
        known = sorted(root.glob(f"*-{key[:12]}"))  # the same question may have had another name
        about = {
            "analysis": name,
            "stack": list(module.context.names),
            "split": split,
            "model": {"source": without_folders(module_source(module))},
            "made_by": made_by,
        }
        if cfg.circuit is not None and "gradient" in cfg.circuit.methods:
            check_gradient(question.objective, "circuit.methods: [integrated_gradients]")
        gathered: dict[str, Any] = {"evidence": cfg.evidence, "circuit": cfg.circuit}
        for part, settings in gathered.items():
            if settings is not None and settings.held_out is not None:
                held_out = read_rows(rows_given(settings.held_out, datamodule))
                gathered[part] = replace(settings, held_out=held_out[: _whole_batches(limit, size)])
        return cls(name, question, known[0] if known else root / f"{name}-{key[:12]}", about, **gathered)

    def run(
        self, module: ITModule, *, shown: bool = False, rank: int = 0, processes: int = 1
    ) -> tuple[AnalysisStore, bool]:
        """Compute what is not there yet, the results between ``it_open_analysis`` and ``it_close_analysis``.

        Args:
            module: The session's module.
            shown: Whether a terminal shows how many batches are done.
            rank: Of this process.
            processes: How many share the batches. Evidence and circuit are gathered by a single one.

        Returns:
            The store, and whether anything was computed.
        """
        there = self._there()
        computed = there is None or not there.complete
        if computed:
            with OpenAnalyses(module) as opened:
                analysis = AnalysisRun(name=self.name, plan=None, cfg=None, folder=self.folder)
                opened.open(analysis, lambda: AnalysisStore.open(self.folder))
                with self.question.held():
                    share = Share(rank, processes)
                    self.question.answered(self.folder, self.about, shown=shown, share=share)
        if processes > 1 and (self.evidence or self.circuit):
            rank_zero_warn(
                f"Evidence and circuit of {self.name!r} are gathered by one process, and {processes} run here. Run the "
                "same again in a single one (without RANK and WORLD_SIZE): it finds the effects, and gathers the rest."
            )
        elif self.evidence is not None or self.circuit is not None:
            effects = Effects.open(self.folder)
            effects.asked, before = self.question, effects.store.manifest.tables
            if self.evidence is not None:
                evidence_of(effects, **vars(self.evidence))
            if self.circuit is not None:
                circuit_of(effects, **vars(self.circuit))
            if Manifest.read(self.folder).tables != before:
                note(self.folder, {"made_by": self.about["made_by"]})  # effects may have been made without these
                computed = True
        return AnalysisStore.open(self.folder), computed

    def dry_run(self) -> DryRun:
        """What ``run`` would do; the first batch is run to estimate, and nothing is written."""
        question, start = self.question, time.perf_counter()
        watch = MemoryWatch(question.backend.model, *(item.dictionary for item in question.every_set))
        with question.held(), watch.first_batch():
            first = evolve(question, rows=question.rows[: question.batch_size]).answered(None)
        seconds = time.perf_counter() - start
        there, batches = self._there(), -(-len(question.rows) // question.batch_size)
        done = 0 if there is None else batches if there.complete else len(batches_there(self.folder))
        units = ", ".join(
            f"{len(item.ids)} {item.kind}{'s' * (len(item.ids) != 1)} of {item.name}" for item in question.sets
        )
        share = len(question.rows) / len(first.asked.rows)
        evidence, for_evidence = self._dry_evidence(first, share)
        circuit, for_circuit = self._dry_circuit(first, share)
        return DryRun(
            plan=f"{question.objective.name}: {question.method} effects of {units} at {question.positions}",
            folder=self.folder,
            batches=batches,
            remaining=batches - done,
            examples=len(question.rows),
            forwards=question.forwards * (batches - done),
            bytes=round(share * sum(item.nbytes for item in first.store.record_batches())),
            seconds=seconds * (batches - done) + for_evidence + for_circuit,
            evidence=evidence,
            circuit=circuit,
            memory=watch.estimates(_slots_of_batches(question)),
        )

    def _dry_evidence(self, first: Effects, share: float) -> tuple[tuple[str, ...], float]:
        """Parts of the evidence that are not there yet, and about how many seconds they take.

        Args:
            first: Effects of the first batch of rows.
            share: How many times as many rows there are.
        """
        if self.evidence is None:
            return (), 0.0
        settings = vars(self.evidence)
        missing = parts_to_gather(self._effects_there(first), **settings)
        rows = settings["held_out"] or []
        few = rows[: self.question.batch_size]
        times = {"held_out": len(rows) / max(len(few), 1), "cards": share}
        taken = seconds_of(first, missing, **{**settings, "held_out": few or None})
        return tuple(missing), sum(times.get(part, 1.0) * seconds for part, seconds in taken.items())

    def _dry_circuit(self, first: Effects, share: float) -> tuple[tuple[str, ...], float]:
        """The same of the circuit, all of which is gathered again where a part is not there."""
        if self.circuit is None:
            return (), 0.0
        settings = vars(self.circuit)
        if not (missing := parts_of_circuit(self._effects_there(first), **settings)):
            return (), 0.0
        rows = settings["held_out"] or []
        few = rows[: self.question.batch_size]
        taken = seconds_of_circuit(first, **{**settings, "held_out": few or None})
        times = {"faithfulness": len(rows) / max(len(few), 1)}
        return tuple(missing), sum(times.get(part, share) * seconds for part, seconds in taken.items())

    def _effects_there(self, first: Effects) -> Effects:
        """The effects that the store has, else those of the first batch."""
        there = self._there()
        if there is None or not there.complete:
            return first
        effects = Effects.open(self.folder)
        effects.asked = self.question
        return effects

    def _there(self) -> Manifest | None:
        there = Manifest.read(self.folder) if (self.folder / MANIFEST).exists() else None
        return there if there is not None and there.key == self.question.key else None
