"""Operations: plain functions with a declaration of what they read, write and need."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from interpretune.analysis.fields import Field, Per
from interpretune.errors import PlanError

SOURCES: Mapping[str, Field] = {
    item.name: item
    for item in (
        Field("inputs", "object", Per.batch, about="ModelInputs of the batch"),
        Field("labels", "int64", about="answer token"),
        Field("orig_labels", "int64", about="correct answer"),
        Field("batch", "object", Per.batch, about="the batch as the data module gives it, without labels"),
        Field("batch_idx", "object", Per.batch, about="its index in the split"),
        Field("module", "object", Per.batch, about="the session's module"),
        Field("backend", "object", Per.batch, about="AnalysisBackend of the session"),
        Field("latent_models", "object", Per.batch, about="all latent models of the session"),
        Field("replays", "object", Per.batch, about="whether some operation of the run replays tokens"),
    )
}
"""What every operation can read without anybody writing it."""


@frozen(eq=False)
class Operation:
    """A function of a batch, or of a whole run, and what it declares.

    An operation whose fields are per run is called once, when all batches are there. It gets each field that it reads
    as a sequence with one entry for each batch, which is read from the store while it is gone through.

    Attributes:
        name: An identifier, unique in a plan.
        function: Called with what it reads and with the options, by name. Returns the one field that it writes, or a
            mapping of all.
        reads: Names of fields.
        writes: Fields.
        needs: Capabilities of the backend, see ``interpretune.analysis.CAPABILITIES``; ``latent_models`` stands for
            latent models in the session.
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
        """Whether it is called once for a run."""
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
        """Call the function, with the operation's options where none are given."""
        return self.function(*args, **{**self.options, **kwargs})

    @property
    def identity(self) -> str:
        """Hash of everything that its results depend on beside what it reads: declaration, options and source.

        Raises:
            PlanError: The function refers to an object that cannot be hashed.
        """
        digest = hashlib.sha256()
        told = [self.name, *map(repr, self.reads), *map(str, self.writes)]
        lasting = sorted(self.options.keys() - self.volatile)
        told += [f"{name}={_hash_of(self.options[name], self.name)}" for name in lasting]
        digest.update(json.dumps(told).encode())
        _hash_function(self.function, digest, self.name, set())
        return digest.hexdigest()

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
    """Make an operation of a function: its parameters are what it reads, its keyword-only parameters are options.

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


# ------------------------------------------------------------------------------------------------------------- hashing


def _hash_function(function: Any, digest: Any, owner: str, seen: set[int]) -> None:
    """Hash source, closure, and what a function refers to of its own module."""
    if isinstance(function, functools.partial):
        digest.update(_hash_of([list(function.args), function.keywords], owner).encode())
        function = function.func
    if not isinstance(function, FunctionType):
        digest.update(f"{type(function).__module__}.{getattr(function, '__qualname__', type(function))}".encode())
        return
    if id(function) in seen:
        return
    seen.add(id(function))
    digest.update(f"{function.__module__}.{function.__qualname__}".encode())
    _hash_code(function.__code__, digest, owner)
    referred = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    closed = dict(
        zip(function.__code__.co_freevars, (c.cell_contents for c in function.__closure__ or ()), strict=True)
    )
    for name, value in sorted({**referred, **closed}.items()):
        digest.update(name.encode())
        if isinstance(value, FunctionType) and value.__module__ == function.__module__:
            _hash_function(value, digest, owner, seen)
        elif isinstance(value, (FunctionType, ModuleType, type)) or callable(value):
            digest.update(f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', name)}".encode())
        elif name in closed or isinstance(value, (bool, int, float, str, tuple, Tensor)):
            digest.update(_hash_of(value, owner).encode())


def _hash_code(code: CodeType, digest: Any, owner: str) -> None:
    digest.update(code.co_code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _hash_code(constant, digest, owner)
        else:
            digest.update(_hash_of(constant, owner).encode())
    digest.update(repr(code.co_names).encode())


def _names(code: CodeType) -> set[str]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def _hash_of(value: Any, owner: str) -> str:
    """Hash of a setting: numbers, strings, tensors, attrs and enum values, and containers of them."""
    digest = hashlib.sha256(type(value).__name__.encode())
    if isinstance(value, Tensor):
        dense = value.detach().cpu().contiguous()
        digest.update(f"{dense.dtype}{tuple(dense.shape)}".encode())
        digest.update(dense.reshape(-1).view(torch.uint8).numpy().tobytes() if dense.numel() else b"")
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(f"{key}:{_hash_of(value[key], owner)}".encode())
    elif isinstance(value, (frozenset, set)):
        digest.update(json.dumps(sorted(_hash_of(item, owner) for item in value)).encode())
    elif value is None or value is ... or isinstance(value, (bool, int, float, complex, str, bytes, Enum)):
        digest.update(repr(value).encode())
    elif hasattr(type(value), "__attrs_attrs__"):
        digest.update(_hash_of({a.name: getattr(value, a.name) for a in type(value).__attrs_attrs__}, owner).encode())
    elif isinstance(value, Sequence):
        for item in value:
            digest.update(_hash_of(item, owner).encode())
    elif callable(value):
        _hash_function(value, digest, owner, set())
    else:
        raise PlanError(
            f"Operation {owner} depends on a {type(value).__name__}, whose content cannot be hashed: give it as "
            "options of numbers, strings and tensors, so that other settings are never taken for the same analysis."
        )
    return digest.hexdigest()
