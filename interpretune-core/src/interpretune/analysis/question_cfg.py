"""Questions among the analyses of a run, as code and files say them: of effects, of circuits, and what is gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from interpretune.circuits.component_calls import edge_question, patching_question, path_question
from interpretune.circuits.gathering import Approximation
from interpretune.circuits.graph_question import graph_question
from interpretune.circuits.node_calls import node_question
from interpretune.circuits.results_of import results_kind
from interpretune.circuits.share_of_pool import check_share
from interpretune.config.checked import Between, CheckedConfig, Positive, Seed
from interpretune.errors import ConfigurationError
from interpretune.questions.lenses import direct_question, lens_question
from interpretune.questions.model_and_rows import ModelAndRows
from interpretune.questions.one_call import question_of
from interpretune.questions.question import Question
from interpretune.questions.result import Results
from interpretune.questions.sources import ANSWERS, CORRECT
from interpretune.questions.written_units import written_units

if TYPE_CHECKING:
    from interpretune.questions.prompt_row import PromptRow
    from interpretune.session.datamodule import ITDataModule
    from interpretune.session.module import ITModule

Count = Annotated[int, Between(0)]
OF_ALL = frozenset({"objective", "method", "batch_size", "split", "limit"})
"""Settings of every question."""
OF_NODES = frozenset({"at", "direct", "tolerance", "gradient"})
"""Settings that go with ``targets``."""
OF_EDGES = frozenset({"approximations", "exact", "edges", "prune", "max_nodes"})
"""Settings of the edges between components, and of attribution graphs."""
TAKEN = {
    "lens": OF_ALL,
    "direct": OF_ALL | {"units"},
    "node_patching": OF_ALL | {"units", "row_budget"},
    "component_edges": OF_ALL | {"approximations", "exact", "steps", "row_budget"},
    "path_patching": OF_ALL | {"edges", "row_budget"},
    "attribution_graph": OF_ALL - {"objective"} | {"units", "prune", "max_nodes"},
}
"""Settings of methods that do not ask for effects of single units."""


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
    """What units do to an objective or to each other, as one of the analyses of a run, over its rows of questions.

    Attributes:
        units: What is changed, one or a list: units of code, or as files say it ``{neurons: 15}``, ``{heads: all}``,
            ``{latents: all}`` or the name of a latent model of the session, ``{vector: layers.3.mlp_out}``, each also
            with ``only: [ids]``.
        objective: ``logit_diff``, ``{logit_diff: {against: mean}}``, ``log_prob``, ``prob``, ``kl``, ``loss``, or an
            objective or function of code.
        value: What units are set to: ``zero``, ``mean``, ``corrupted``, or a number.
        mean_over: For ``mean``: a split, or other rows; None: the rows of the question.
        positions: ``answer``, ``each``, or the name of a span.
        method: ``exact``, ``gradient`` or ``integrated_gradients`` (``effects``); ``node_patching`` (whose units may be
            left out), ``component_edges`` or ``path_patching``, of rows with corrupted prompts; ``attribution_graph``,
            whose units are transcoders, of each row's prompt; or ``direct`` (``direct_logit_attribution``, whose units
            may be left out) or ``lens`` (``logit_lens``, of no units), which change nothing.
        steps: Of integrated gradients, or of ``eap_ig``; None: 10 or 5.
        budget: Most exact effects; None: all.
        batch_size: Rows of one forward; None: ``eval_batch_size`` of the data module.
        row_budget: Most changed rows that run at a time; None: chosen from the free memory.
        split: Whose rows are asked about; None: those that are tested.
        limit: Most rows, up to whole batches; None: all that the run takes.
        targets: Units on which effects are wanted too (``on`` of ``effects_on``, a word that YAML takes for true), as
            ``units``; None: on the objective alone.
        at: With ``targets``: at which tokens.
        direct: With ``targets``: past dictionaries.
        tolerance: With ``targets``: effects of this size or less are left out.
        gradient: With ``targets``: gradient effects beside the exact ones.
        approximations: Of ``component_edges``: ``eap``, ``eap_ig``.
        exact: Of ``component_edges``: how many edges are patched exactly, too.
        edges: Of ``path_patching``: pairs of the names of a source and a target.
        prune: Of ``attribution_graph``: shares of the influence of nodes and of edges that are kept.
        max_nodes: Of ``attribution_graph``: most latents of a graph.
        evidence: What is gathered after effects; None: nothing.
        circuit: The circuit that is gathered after that; None: none.
    """

    units: Any = None
    objective: Any = "logit_diff"
    value: Any = "zero"
    mean_over: Any = None
    positions: str = "answer"
    method: Literal[
        "exact",
        "gradient",
        "integrated_gradients",
        "node_patching",
        "component_edges",
        "path_patching",
        "attribution_graph",
        "direct",
        "lens",
    ] = "exact"
    steps: Positive | None = None
    budget: Positive | None = None
    batch_size: Positive | None = None
    row_budget: Positive | None = None
    split: str | None = None
    limit: Positive | None = None
    targets: Any = None
    at: str = "same"
    direct: bool = False
    tolerance: Annotated[float, Between(0)] = 1e-3
    gradient: bool = False
    approximations: tuple[Literal["eap", "eap_ig"], ...] = ("eap",)
    exact: Count = 0
    edges: tuple[tuple[str, str], ...] | None = None
    prune: tuple[float, float] = (0.8, 0.98)
    max_nodes: Positive = 2000
    evidence: EvidenceCfg | None = None
    circuit: CircuitCfg | None = None

    def __post_init__(self) -> None:
        for name in ("approximations", "prune"):  # of files they are lists
            setattr(self, name, tuple(getattr(self, name)))
        every = {item.name for item in fields(self)}
        taken = TAKEN.get(
            self.method, every - OF_EDGES - (OF_NODES if self.targets is None else {"evidence", "circuit"})
        )
        for name in (item.name for item in fields(self) if item.name not in taken):
            if not _is_default(getattr(self, name), getattr(type(self), name)):
                why = f"which means nothing with the method {self.method}"
                if self.method in ("lens", "direct"):
                    why = f"and the method {self.method} looks at the clean run, where it means nothing"
                elif name in OF_NODES:
                    why = "which means nothing without targets: units on which effects are wanted"
                elif self.targets is not None:
                    why = "which is gathered of effects on the objective alone, in an analysis without targets"
                raise ConfigurationError(f"QuestionCfg.{name} is {getattr(self, name)!r}, {why}. Leave it out.")
        if self.circuit is not None and self.method != "exact":
            raise ConfigurationError(
                f"QuestionCfg.circuit stands on exact effects, and the method is {self.method}. Leave the method out: "
                "circuit.methods names the approximations that are held against them."
            )
        if self.targets is not None and self.method != "exact":
            raise ConfigurationError(
                f"QuestionCfg.targets asks for exact effects on units, and the method is {self.method}. Leave the "
                "method out; gradient: true gives gradient effects beside them."
            )

    @property
    def result(self) -> type[Results]:
        """What its store is read as."""
        kind = results_kind(self.method, self.targets is not None)
        assert kind is not None  # every method has one
        return kind

    def question(self, module: ITModule, datamodule: ITDataModule, rows: Sequence[PromptRow]) -> Question:
        """The question about rows, not answered yet."""
        size = self.batch_size or datamodule.itdm_cfg.eval_batch_size
        units, on = (
            None if given is None else written_units(given, module.latent_models)
            for given in (self.units, self.targets)
        )
        if self.method == "attribution_graph":
            asked = ModelAndRows.of(module.backend, datamodule.tokenizer, rows, ANSWERS, CORRECT, size)
            with asked.held():
                return graph_question(asked, units, self.prune, self.max_nodes)
        if self.method in ("lens", "direct"):
            asked = ModelAndRows.of(module.backend, datamodule.tokenizer, rows, ANSWERS, CORRECT, size)
            with asked.held():
                lens = self.method == "lens"
                return lens_question(asked, self.objective) if lens else direct_question(asked, units, self.objective)
        backend, tokenizer = module.backend, datamodule.tokenizer
        told: dict[str, Any] = {"objective": self.objective, "batch_size": size, "row_budget": self.row_budget}
        steps: dict[str, Any] = {} if self.steps is None else {"steps": self.steps}
        if self.method == "node_patching":
            return patching_question(backend, tokenizer, rows, units=units, **told)
        if self.method == "component_edges":
            return edge_question(
                backend, tokenizer, rows, method=self.approximations, exact=self.exact, **steps, **told
            )
        if self.method == "path_patching":
            return path_question(backend, tokenizer, rows, edges=self.edges, **told)
        told |= {"units": units, "value": self.value, "positions": self.positions, "budget": self.budget}
        told["mean_over"] = rows_given(self.mean_over, datamodule)
        if on is None:
            return question_of(backend, tokenizer, rows, method=self.method, **steps, **told)
        nodes: dict[str, Any] = {name: getattr(self, name) for name in OF_NODES}
        return node_question(backend, tokenizer, rows, on=on, **nodes, **told)


def _is_default(value: Any, default: Any) -> bool:
    """Whether a setting is as if it had not been given; arrays and the like are no defaults."""
    return value is default or (isinstance(value, type(default)) and default is not None and bool(value == default))


def rows_given(given: Any, datamodule: ITDataModule) -> Any:
    """Rows of a split, where it is the name of one."""
    return datamodule.rows(given) if isinstance(given, str) and given in datamodule.dataset else given
