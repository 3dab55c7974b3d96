"""Questions among the analyses of a run: what ``effects`` asks, over the rows of the session, into a store."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from attrs import evolve, frozen

from interpretune.analysis.analysis_run import AnalysisRun
from interpretune.analysis.dry_run import DryRun
from interpretune.analysis.identity import module_source
from interpretune.analysis.memory_estimate import MemoryWatch
from interpretune.analysis.open_analyses import OpenAnalyses
from interpretune.backends.identity import without_folders
from interpretune.circuits.gathering import Approximation, circuit_of, parts_of_circuit, seconds_of_circuit
from interpretune.circuits.share_of_pool import check_share
from interpretune.config.checked import Between, CheckedConfig, Positive, Seed
from interpretune.errors import ConfigurationError
from interpretune.evidence.gathering import evidence_of, parts_to_gather, seconds_of
from interpretune.operations.objectives import check_gradient
from interpretune.questions.answering import Share
from interpretune.questions.lenses import direct_question, lens_question
from interpretune.questions.model_and_rows import ModelAndRows
from interpretune.questions.one_call import question_of
from interpretune.questions.question import Question
from interpretune.questions.result import Effects
from interpretune.questions.sources import ANSWERS, CORRECT, read_rows
from interpretune.questions.written_units import written_units
from interpretune.store import AnalysisStore, Manifest
from interpretune.store.contents import batches_there
from interpretune.store.folder import MANIFEST
from interpretune.store.tables import note
from interpretune.system.ranks import rank_zero_warn

if TYPE_CHECKING:
    from interpretune.questions.prompt_row import PromptRow
    from interpretune.session.datamodule import ITDataModule
    from interpretune.session.module import ITModule


LOOKED_AT = frozenset({"objective", "method", "batch_size", "split", "limit"})
"""Settings of questions that change nothing."""


@dataclass(kw_only=True)
class EvidenceCfg(CheckedConfig, checks_types=True):
    """What ``evidence_of`` gathers after the effects of a question.

    Attributes:
        held_out: A split, or other rows, none of them of the question; None: no proof.
        top: Units that are changed together.
        cards: Units that get cards.
        steer: Rows that are continued.
        new_tokens: Most tokens of a continuation.
        seed: Of the other units that are drawn for control.
    """

    held_out: Any = None
    top: Positive = 5
    cards: Annotated[int, Between(0)] = 10
    steer: Annotated[int, Between(0)] = 4
    new_tokens: Positive = 12
    seed: Seed = 0


@dataclass(kw_only=True)
class CircuitCfg(CheckedConfig, checks_types=True):
    """What ``circuit_of`` gathers after the effects of a question, which are exact.

    Attributes:
        held_out: A split, or other rows, none of them of the question; None: no curves, and sets are not judged.
        sets: Which smallest sets are searched, ``sufficient`` or ``necessary``.
        share: What they are to reach of what the whole pool does.
        pool: Units at the top, of which sets are made.
        width: Of the beam; 1: a greedy search.
        budget: Most sets that a search evaluates.
        methods: Approximations that are judged, and have curves: ``gradient``, ``integrated_gradients``.
        sizes: Numbers of units in the curves; None: 1, 2, 3, 4, 6, 8, 12, ... and all; empty: no curves.
        draws: Random rankings that are averaged.
        top: Of how many units the overlap of methods is.
        edges: Units that get exact edges: those of the sets, then those at the top; 0: none.
        pairs: Units at the top whose pairs are changed; 0: none.
        shapley: Units at the top that get Shapley values; 0: none.
        permutations: Orders that are drawn for these.
        seed: Of all that is drawn.
    """

    held_out: Any = None
    sets: tuple[Literal["sufficient", "necessary"], ...] = ("sufficient",)
    share: Annotated[float, Between(0, 1)] = 0.8
    pool: Positive = 30
    width: Positive = 1
    budget: Positive = 10_000
    methods: tuple[Approximation, ...] = ("gradient",)
    sizes: tuple[Positive, ...] | None = None
    draws: Annotated[int, Between(0)] = 5
    top: Positive = 20
    edges: Annotated[int, Between(0)] = 12
    pairs: Annotated[int, Between(0)] = 0
    shapley: Annotated[int, Between(0)] = 0
    permutations: Positive = 100
    seed: Annotated[int, Between(0)] = 0

    def __post_init__(self) -> None:
        check_share(self.share)
        for name in ("sets", "methods", "sizes"):  # of files they are lists
            if getattr(self, name) is not None:
                setattr(self, name, tuple(getattr(self, name)))
            if len(set(getattr(self, name) or ())) < len(getattr(self, name) or ()):
                raise ConfigurationError(f"CircuitCfg.{name} is {getattr(self, name)!r}; name each once.")


@dataclass(kw_only=True)
class QuestionCfg(CheckedConfig, checks_types=True):
    """What units do to an objective: ``effects`` as one of the analyses of a run, over its rows of questions.

    Attributes:
        units: What is changed, one or a list: units of code, or as files say it ``{neurons: 15}``, ``{heads: all}``,
            ``{latents: all}`` or the name of a latent model of the session, ``{vector: layers.3.mlp_out}``, each also
            with ``only: [ids]``.
        objective: ``logit_diff``, ``{logit_diff: {against: mean}}``, ``log_prob``, ``prob``, ``kl``, ``loss``, or an
            objective or function of code.
        value: What units are set to: ``zero``, ``mean``, ``corrupted``, or a number.
        mean_over: For ``mean``: a split, or other rows; None: the rows of the question.
        positions: ``answer``, ``each``, or the name of a span.
        method: ``exact``, ``gradient`` or ``integrated_gradients``; or ``direct`` (``direct_logit_attribution``, whose
            units may be left out) or ``lens`` (``logit_lens``, of no units), which change nothing.
        steps: Of integrated gradients.
        budget: Most exact effects; None: all.
        batch_size: Rows of one forward; None: ``eval_batch_size`` of the data module.
        row_budget: Most changed rows that run at a time; None: chosen from the free memory.
        split: Whose rows are asked about; None: those that are tested.
        limit: Most rows, up to whole batches; None: all that the run takes.
        evidence: What is gathered after effects; None: nothing.
        circuit: The circuit that is gathered after that; None: none.
    """

    units: Any = None
    objective: Any = "logit_diff"
    value: Any = "zero"
    mean_over: Any = None
    positions: str = "answer"
    method: Literal["exact", "gradient", "integrated_gradients", "direct", "lens"] = "exact"
    steps: Positive = 10
    budget: Positive | None = None
    batch_size: Positive | None = None
    row_budget: Positive | None = None
    split: str | None = None
    limit: Positive | None = None
    evidence: EvidenceCfg | None = None
    circuit: CircuitCfg | None = None

    def __post_init__(self) -> None:
        taken = {"lens": LOOKED_AT, "direct": LOOKED_AT | {"units"}}.get(self.method)
        idle = [] if taken is None else [item.name for item in fields(self) if item.name not in taken]
        for name in idle:
            if getattr(self, name) != getattr(type(self), name):
                raise ConfigurationError(
                    f"QuestionCfg.{name} is {getattr(self, name)!r}, and the method {self.method} looks at the "
                    f"clean run, where it means nothing. Leave it out."
                )
        if self.circuit is not None and self.method != "exact":
            raise ConfigurationError(
                f"QuestionCfg.circuit stands on exact effects, and the method is {self.method}. Leave the method out: "
                "circuit.methods names the approximations that are held against them."
            )

    def question(self, module: ITModule, datamodule: ITDataModule, rows: Sequence[PromptRow]) -> Question:
        """The question about rows, not answered yet."""
        size = self.batch_size or datamodule.itdm_cfg.eval_batch_size
        units = None if self.units is None else written_units(self.units, module.latent_models)
        if self.method in ("lens", "direct"):
            asked = ModelAndRows.of(module.backend, datamodule.tokenizer, rows, ANSWERS, CORRECT, size)
            with asked.held():
                lens = self.method == "lens"
                return lens_question(asked, self.objective) if lens else direct_question(asked, units, self.objective)
        return question_of(
            module.backend,
            datamodule.tokenizer,
            rows,
            units=units,
            objective=self.objective,
            value=self.value,
            mean_over=_rows_given(self.mean_over, datamodule),
            positions=self.positions,
            method=self.method,
            steps=self.steps,
            budget=self.budget,
            batch_size=size,
            row_budget=self.row_budget,
        )


def _rows_given(given: Any, datamodule: ITDataModule) -> Any:
    """Rows of a split, where it is the name of one."""
    return datamodule.rows(given) if isinstance(given, str) and given in datamodule.dataset else given


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
                held_out = read_rows(_rows_given(settings.held_out, datamodule))
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
