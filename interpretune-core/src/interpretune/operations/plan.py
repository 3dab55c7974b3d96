"""Plans: operations ordered so that each finds what it reads, checked before anything runs."""

from __future__ import annotations

import graphlib
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from attrs import frozen

from interpretune.errors import PlanError
from interpretune.operations.definition import SOURCES, Operation
from interpretune.store.fields import Field, Per
from interpretune.system.credentials import text_without_credentials, without_credentials
from interpretune.system.html_table import html_table

if TYPE_CHECKING:
    from interpretune.backends.backend import AnalysisBackend

LATENT_MODELS = "latent_models"
"""The need of operations that require latent models."""


@frozen(eq=False)
class Plan:
    """Operations that fit together. Make one with ``Plan.of``; ``print(plan)`` shows it.

    Attributes:
        operations: In the order in which they run.
        keeps: Names of the fields that are results, in order.
        sources: Fields that exist before anything runs.
    """

    operations: tuple[Operation, ...]
    keeps: tuple[str, ...]
    sources: Mapping[str, Field]

    @classmethod
    def of(
        cls,
        operations: Iterable[Operation],
        keep: Collection[str] | None = None,
        sources: Mapping[str, Field] = SOURCES,
    ) -> Plan:
        """Order operations and check that they fit together.

        Args:
            operations: In any order; an operation given twice with the same settings counts once.
            keep: Fields that are results; None: all that can be stored.
            sources: Fields that exist before anything runs.

        Raises:
            PlanError: No operation writes a field that is read or kept, two operations write the same field, they wait
                for each other, or a field does not have the unit, shape or dtype that its reader expects.
        """
        chosen = _distinct(operations)
        writer = _writers(chosen, sources)
        fields = {**sources, **{item.name: item for op in chosen for item in op.writes}}
        for op in chosen:
            for name in op.reads:
                if name not in fields:
                    raise PlanError(f"Operation {op.name} reads {name}, which nobody writes.{_nearest(name, fields)}")
                if not op.per_run and fields[name].per is Per.run:
                    raise PlanError(f"Operation {op.name} runs on batches and reads {name}, which is there at the end.")
                if op.per_run and not fields[name].stored:
                    raise PlanError(f"Operation {op.name} runs at the end and reads {name}, which is never stored.")
            for wanted in op.expects:
                _check_fits(op, wanted, fields[wanted.name])
        wanted_names = [name for name in fields if name not in sources and fields[name].stored]
        for name in keep or ():
            if name not in fields:
                raise PlanError(f"The plan is to keep {name}, which nobody writes.{_nearest(name, fields)}")
            if not fields[name].stored:
                raise PlanError(f"The plan is to keep {name}, which lives in memory only.")
        kept = list(wanted_names if keep is None else dict.fromkeys(keep))
        kept = list(dict.fromkeys([*kept, *(name for op in chosen if op.per_run for name in op.reads)]))
        graph = {op.name: list(dict.fromkeys(writer[n].name for n in op.reads if n in writer)) for op in chosen}
        try:
            order = list(graphlib.TopologicalSorter(graph).static_order())
        except graphlib.CycleError as error:
            raise PlanError(f"Operations wait for each other: {' -> '.join(reversed(error.args[1]))}.") from error
        by_name = {op.name: op for op in chosen}
        return cls(tuple(by_name[name] for name in order), tuple(kept), sources)

    @property
    def fields(self) -> dict[str, Field]:
        """All fields by name, sources included."""
        return {**self.sources, **{item.name: item for op in self.operations for item in op.writes}}

    @property
    def kept(self) -> list[Field]:
        """The fields that are results."""
        fields = self.fields
        return [fields[name] for name in self.keeps]

    @property
    def needs(self) -> frozenset[str]:
        """Capabilities that its operations need."""
        return frozenset().union(*(op.needs for op in self.operations))

    @property
    def forwards(self) -> float:
        """Forward passes per batch, without replays."""
        return sum(op.forwards for op in self.operations)

    def check_backend(self, backend: AnalysisBackend, latent_models: Sequence[Any]) -> None:
        """Refuse a backend that lacks what an operation needs.

        Raises:
            PlanError: The backend lacks it, or there are no latent models.
        """
        for op in self.operations:
            if LATENT_MODELS in op.needs and not latent_models:
                raise PlanError(
                    f"Operation {op.name} needs latent models and this session has none. Stack an adapter that loads "
                    "them and configure it, or pass your own as ITConfig(latent_models=[...])."
                )
            if missing := op.needs - {LATENT_MODELS} - backend.capabilities:
                raise PlanError(
                    f"Operation {op.name} needs {', '.join(sorted(missing))}, which {type(backend).__name__} does not "
                    f"offer; it offers {', '.join(sorted(backend.capabilities))}. Stack another model adapter."
                )

    def node_keys(self, *, work: bool = False) -> dict[str, str]:
        """For each field, a hash of all it is computed from: operations, their settings, and what those read.

        Args:
            work: Count settings that change no result, too.
        """
        keys = {name: f"source {name}" for name in self.sources}
        for op in self.operations:
            digest = hashlib.sha256((op.work if work else op.identity).encode())
            for name in sorted(op.reads):
                digest.update(f"{name}={keys[name]}".encode())
            for item in op.writes:
                keys[item.name] = f"{item.name} of {digest.hexdigest()}"
        return keys

    @property
    def key(self) -> str:
        """Hash of the plan's results."""
        keys = self.node_keys()
        told = [f"{item} {item.ragged} {keys[item.name]}" for item in self.kept]
        return hashlib.sha256("\n".join(sorted(told)).encode()).hexdigest()

    def _repr_html_(self) -> str:
        rows = [
            {
                "operation": op.name,
                "reads": ", ".join(op.reads),
                "writes": ", ".join(item.name for item in op.writes),
                "needs": ", ".join(sorted(op.needs)),
            }
            for op in self.operations
        ]
        return html_table(f"Plan that keeps {', '.join(self.keeps)}", rows)

    def __str__(self) -> str:
        kept = set(self.keeps)
        lines = []
        for op in self.operations:
            told = without_credentials(op.options)
            options = [f"{name}={_short(value)}" for name, value in told.items() if value is not None]
            written = ", ".join(f"{item.name}{'*' if item.name in kept else ''}" for item in op.writes)
            about = f"   [{', '.join(sorted(op.needs))}]" if op.needs else ""
            lines.append(f"{op.name}({', '.join([*op.reads, *options])}) -> {written}{about}")
        lines += ["", "* kept:"]
        lines += [f"  {item}" + (f" ({item.about})" if item.about else "") for item in self.kept]
        return "\n".join(lines)


def _distinct(operations: Iterable[Operation]) -> list[Operation]:
    chosen: dict[str, Operation] = {}
    for op in operations:
        if op.name not in chosen:
            chosen[op.name] = op
        elif chosen[op.name] is not op and chosen[op.name].identity != op.identity:
            raise PlanError(
                f"Two different operations are called {op.name}; give one another name or the same options."
            )
    return list(chosen.values())


def _writers(operations: Iterable[Operation], sources: Mapping[str, Field]) -> dict[str, Operation]:
    writer: dict[str, Operation] = {}
    for op in operations:
        for item in op.writes:
            if item.name in sources:
                raise PlanError(f"Operation {op.name} writes {item.name}, which is there before anything runs.")
            if item.name in writer:
                raise PlanError(f"The operations {writer[item.name].name} and {op.name} both write {item.name}.")
            writer[item.name] = op
    return writer


def _check_fits(op: Operation, wanted: Field, found: Field) -> None:
    same_dtype = wanted.dtype == found.dtype or ("float" in (wanted.dtype, found.dtype) and _floats(wanted, found))
    if (wanted.per, wanted.shape, wanted.ragged) != (found.per, found.shape, found.ragged) or not same_dtype:
        raise PlanError(f"Operation {op.name} expects {wanted}, and the plan has {found}.")


def _floats(*fields: Field) -> bool:
    return all("float" in item.dtype for item in fields)


def _nearest(name: str, known: Iterable[str]) -> str:
    found = get_close_matches(name, list(known), 1)
    return f" Did you mean {found[0]}?" if found else f" There are {', '.join(known)}."


def _short(value: Any) -> str:
    text = text_without_credentials(repr(value))
    return text if len(text) <= 40 else f"{text[:36]} ..."
