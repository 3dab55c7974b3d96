"""Operations: plain functions that declare what they read, write and need."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from interpretune.errors import PlanError
from interpretune.hashing.content_hash import hash_of
from interpretune.store.fields import Field, Per

SOURCES: Mapping[str, Field] = {
    item.name: item
    for item in (
        Field("inputs", "object", Per.batch, about="ModelInputs of the batch"),
        Field("labels", "int64", about="answer token"),
        Field("orig_labels", "int64", about="correct answer"),
        Field("batch", "object", Per.batch, about="the batch as the data module gives it, without labels"),
        Field("batch_idx", "object", Per.batch, about="its index in the split"),
        Field("answer_reader", "object", Per.batch, about="AnswerReader of the batch"),
        Field(
            "loss_fn", "object", Per.batch, about="takes logits and answer tokens; the module's own, or cross entropy"
        ),
        Field("tokenizer", "object", Per.batch, about="the tokenizer of the model"),
        Field("backend", "object", Per.batch, about="AnalysisBackend that runs the model"),
        Field("latent_models", "object", Per.batch, about="the latent models that are spliced in together"),
        Field("module", "object", Per.batch, about="the module, in a session; core's operations do not read it"),
        Field("replays", "object", Per.batch, about="whether some operation of the run replays tokens"),
    )
}
"""Fields that every operation can read without another operation writing them."""


@frozen(eq=False)
class Operation:
    """A function of a batch, or of a whole run, and what it declares.

    An operation whose fields are per run is called once, after all batches. It gets each field it reads as a sequence
    with one entry per batch, which is read from the store during iteration.

    Attributes:
        name: An identifier, unique in a plan.
        function: Called with what it reads and with the options, by name. Returns the one field it writes, or a mapping
            of several.
        reads: Names of fields.
        writes: Fields.
        needs: Capabilities of the backend, see ``interpretune.analysis.CAPABILITIES``; ``latent_models`` stands for
            latent models.
        expects: Fields of ``reads`` whose unit of count, shape and dtype must be as given here.
        options: Settings of the function.
        forwards: Forward passes of a batch, for estimates.
        volatile: Options that change no result, such as the size of chunks.
    """

    name: str
    function: Callable[..., Any]
    reads: tuple[str, ...]
    writes: tuple[Field, ...]
    needs: frozenset[str] = frozenset()
    expects: tuple[Field, ...] = ()
    options: Mapping[str, Any] = field(factory=dict)
    forwards: float = 0
    volatile: frozenset[str] = frozenset()

    @property
    def per_run(self) -> bool:
        """Whether it is called once per run."""
        return self.writes[0].per is Per.run

    def with_options(self, **options: Any) -> Operation:
        """The same operation with other settings.

        Raises:
            PlanError: It has no such option.
        """
        if unknown := options.keys() - self.options.keys():
            raise PlanError(
                f"Operation {self.name} has no option {', '.join(sorted(unknown))}; its options are "
                f"{', '.join(self.options) or 'none'}."
            )
        return evolve(self, options={**self.options, **options})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, with the operation's options unless others are given."""
        return self.function(*args, **{**self.options, **kwargs})

    @property
    def identity(self) -> str:
        """Hash of everything its results depend on besides what it reads: declaration, options and code.

        It is computed each time, because options and what the function refers to can be changed in place. What
        operations share and draw depends on it, so an operation that cannot be read is refused.

        Raises:
            UnknownContentError: An option, or something that the function refers to, cannot be read.
        """
        lasting = {name: value for name, value in self.options.items() if name not in self.volatile}
        told = [self.name, *self.reads, *map(str, self.writes), lasting, self.function]
        return hash_of(told, f"Operation {self.name}")

    @property
    def work(self) -> str:
        """Hash of what it does, including settings that change no result: equal work is done once."""
        passing = {name: value for name, value in self.options.items() if name in self.volatile}
        return hash_of([self.identity, passing], f"Operation {self.name}")

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        written = ", ".join(item.name for item in self.writes)
        return f"{self.name}({', '.join(self.reads)}{options}) -> {written}"


def operation(
    *,
    writes: Field | Sequence[Field],
    needs: Collection[str] = (),
    reads: Sequence[str | Field] | None = None,
    name: str | None = None,
    forwards: float = 0,
    volatile: Collection[str] = (),
) -> Callable[[Callable[..., Any]], Operation]:
    """Make an operation from a function: its parameters are what it reads, its keyword-only parameters are options.

    Args:
        writes: What it returns: one field, or several, which are returned as a mapping.
        needs: Capabilities of the backend.
        reads: What it reads, where a unit of count or a shape is to be checked (fields) or the function takes
            ``**kwargs``; None: its parameters.
        name: None: that of the function.
        forwards: Forward passes of a batch, for estimates.
        volatile: Options that change no result.

    Raises:
        PlanError: The declaration contradicts itself or the function.
    """

    def declare(function: Callable[..., Any]) -> Operation:
        called = name or function.__name__
        fields = (writes,) if isinstance(writes, Field) else tuple(writes)
        parameters = inspect.signature(function).parameters.values()
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
        taken = tuple(p.name for p in positional)
        given = taken if reads is None else tuple(r if isinstance(r, str) else r.name for r in reads)
        if set(given) != set(taken) and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise PlanError(
                f"Operation {called} declares that it reads {', '.join(given)}; its function takes {', '.join(taken)}."
            )
        if any(p.default is not p.empty for p in positional):
            raise PlanError(f"Operation {called}: put a * before parameters with defaults, they are options.")
        if not fields or len({item.per is Per.run for item in fields}) > 1:
            raise PlanError(f"Operation {called} must write something, all of it per run or none of it.")
        options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        if missing := [key for key, value in options.items() if value is inspect.Parameter.empty]:
            raise PlanError(f"Operation {called}: the option {missing[0]} needs a default.")
        expects = tuple(r for r in reads or () if isinstance(r, Field))
        return Operation(
            called,
            function,
            given,
            fields,
            frozenset(needs),
            expects,
            options,
            forwards,
            frozenset(volatile),
        )

    return declare
