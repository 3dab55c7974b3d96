"""Configuration classes that refuse unknown fields and values of the wrong type, with a clear error."""

from __future__ import annotations

import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence, Set, Sized
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, ClassVar, SupportsIndex, Union, cast

from attrs import frozen

from interpretune.config.field_types import InMemory, declared_field, field_descriptions
from interpretune.errors import ConfigurationFieldError
from interpretune.system.credentials import text_without_credentials

SHOWN = 120
"""How many characters of a value are shown."""
PLAIN = (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, type(None))


@frozen
class Between:
    """Bounds of a number, both included, in the type of a field: ``Annotated[int, Between(1)]``."""

    lowest: float
    highest: float = math.inf

    def __str__(self) -> str:
        return f"from {self.lowest:,}" + (f" to {self.highest:,}" if self.highest < math.inf else "")


Positive = Annotated[int, Between(1)]
"""A whole number from 1."""
Seed = Annotated[int, Between(-(2**63), 2**64 - 1)]
"""A whole number that torch takes as a seed."""


@dataclass(kw_only=True)
class CheckedConfig:
    """A configuration dataclass that reports what is wrong with its arguments.

    Unknown and missing arguments are refused for all subclasses. Types are checked only for fields of classes that ask
    for it, ``class MyConfig(CheckedConfig, checks_types=True)``; classes that users derive from them may use any
    annotations. numpy numbers count as numbers, lists as tuples, and paths as strings that stand for paths.

    Raises:
        ConfigurationFieldError: From the constructor.
    """

    checks_types: ClassVar[bool] = False

    def __init_subclass__(cls, *, checks_types: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.checks_types = checks_types

    def __new__(cls, *args: Any, **values: Any) -> Any:
        """Check the arguments of the constructor."""
        _check_arguments(cls, args, values)
        return super().__new__(cls)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Copies and unpickled objects get their fields without the constructor."""
        make, *rest = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        return (object.__new__ if make.__name__ == "__newobj__" else make, *rest)


def _check_arguments(cls: type, args: Sequence[Any], values: Mapping[str, Any]) -> None:
    signature = inspect.signature(cls.__init__, follow_wrapped=False)  # type: ignore[misc]
    parameters = list(signature.parameters.values())[1:]
    known = [item.name for item in parameters]
    try:
        given = signature.bind(None, *args, **values).arguments
    except TypeError as error:
        unknown = [name for name in values if name not in known]
        near = get_close_matches(unknown[0], known, n=1) if unknown else []
        raise ConfigurationFieldError(
            f"{cls.__qualname__} is given "
            + (f"{unknown[0]!r}, which is no field of it. " if unknown else f"arguments that do not fit: {error}. ")
            + (f"Did you mean {near[0]!r}? " if near else "")
            + f"Its fields are {', '.join(known)}."
        ) from error
    for item in parameters:
        if item.kind is inspect.Parameter.VAR_KEYWORD:
            given |= given.pop(item.name, {})
    for name, value in given.items():
        owner, hint = declared_field(cls, name)
        if owner is not None and vars(owner).get("checks_types") and not fits(value, hint):
            about = field_descriptions(owner).get(name, "")
            raise ConfigurationFieldError(
                f"{cls.__qualname__}.{name} is {value_and_type(value)}; it takes {_words(hint)}."
                + (f" {about}" if about else "")
            )


def check_argument(where: str, value: Any, hint: Any) -> None:
    """Refuse a value that is not of the given type (``ConfigurationFieldError``)."""
    if not fits(value, hint):
        raise ConfigurationFieldError(f"{where} is {value_and_type(value)}; it takes {_words(hint)}.")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value fits a field of some type; if that cannot be told, it fits."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in args)
    if origin is typing.Literal:
        return any(type(value) is type(part) and value == part for part in args)
    if origin is Annotated:
        bounds = [item for item in args[1:] if isinstance(item, Between)]
        return fits(value, args[0]) and all(item.lowest <= value <= item.highest for item in bounds)
    if origin is type or hint is type:
        return isinstance(value, type)
    if origin is Callable or hint is Callable or origin is type(Callable):
        return callable(value)
    if hint is None or hint is type(None):
        return value is None
    if not inspect.isclass(origin or hint):
        return True
    return _is_of(value, origin or hint, args)


def _is_of(value: Any, kind: Any, args: tuple[Any, ...]) -> bool:
    if kind is Any or kind is object or getattr(kind, "_is_protocol", False):
        return True
    if issubclass(kind, InMemory):
        return not isinstance(value, PLAIN)
    if kind is bool:
        return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # numpy's
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if issubclass(kind, Path):
        return isinstance(value, (str, os.PathLike))
    if issubclass(kind, Enum):
        return isinstance(value, (kind, str))
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(
            fits(part, hint) for item in value.items() for part, hint in zip(item, args, strict=False)
        )
    if kind is not str and issubclass(kind, Iterable) and kind.__module__ in ("builtins", "collections.abc"):
        return _is_series(value, kind, args)
    if kind is str:
        return isinstance(value, (str, os.PathLike))
    return isinstance(value, kind)


def _is_series(value: Any, kind: Any, args: tuple[Any, ...]) -> bool:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable) or not isinstance(value, Sized):
        return False
    if not isinstance(value, (list, tuple, Set)):
        return True  # its items may be many, or made when they are asked for
    hints = [item for item in args if item is not Ellipsis]
    if kind is tuple and hints and Ellipsis not in args:
        return len(value) == len(hints) and all(map(fits, value, hints))
    return not hints or all(fits(item, hints[0]) for item in value)


def value_and_type(value: Any) -> str:
    """A value in an error message: short, and without credentials."""
    try:
        text = text_without_credentials(repr(value))
    except Exception as error:  # noqa: BLE001 - a stranger's object that cannot be shown is told by its type alone
        text = f"an object whose repr raises {type(error).__name__}"
    kind = type(value).__name__
    return f"{text if len(text) <= SHOWN else text[: SHOWN - 3] + '...'} ({kind})"


def _words(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is None or hint is type(None):
        return "None"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, args)))
    if origin is Annotated:
        return " ".join([_words(args[0]), *map(str, args[1:])])
    if hint is InMemory:
        return "an object of its own kind"
    if inspect.isclass(origin or hint) and not any(isinstance(item, list) for item in args):
        name = (origin or hint).__name__
        return f"{name}[{', '.join('...' if item is Ellipsis else _words(item) for item in args)}]" if args else name
    return str(hint).replace("typing.", "").replace("collections.abc.", "")
