"""What of configuration classes a file can say: their fields with types, defaults and descriptions."""

from __future__ import annotations

import collections.abc
import inspect
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Union

from attrs import frozen
from torch import Tensor, nn

from interpretune.config.field_types import InMemory, field_descriptions, field_types
from interpretune.errors import ConfigurationError

MAPPINGS = (dict, collections.abc.Mapping)
SEQUENCES = (list, tuple, collections.abc.Sequence)


@frozen
class WrittenField:
    """A field that a file can have."""

    name: str
    type: Any
    default: Any
    about: str

    @property
    def shows_default(self) -> bool:
        """Whether the default can be written too, and read again as what it is."""
        return _is_plain(self.default)


def written_fields(cls: type) -> list[WrittenField]:
    """Fields of a configuration class that a file can have; a needed one that it cannot is a ``ConfigurationError``."""
    found, hints, about = [], field_types(cls), field_descriptions(cls)
    for item in init_fields(cls):
        written, default = written_type(hints.get(item.name, Any)), default_of(item)
        if written is not None:
            found.append(WrittenField(item.name, written, default, about.get(item.name, "")))
        elif default is MISSING:
            raise ConfigurationError(
                f"{cls.__qualname__} needs {item.name}, and its type ({item.type}) cannot be written in a file. "
                "Give the field a default, or a type made of numbers, words, lists, mappings and dataclasses."
            )
    return found


def written_type(hint: Any) -> Any:
    """The part of a type that a file can express; None where nothing or nothing but null is left."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return written_type(args[0])
    if origin in (Union, types.UnionType):
        parts = [part if part is type(None) else written_type(part) for part in args]
        kept = [part for part in parts if part is not None]
        if str in kept:
            kept = [part for part in kept if part is not Path]  # what is a path is a word too
        return None if not set(kept) - {type(None)} else Union[tuple(kept)]  # noqa: UP007 - of as many as there are
    if origin in (typing.Literal, type) or hint is Any:
        return hint
    if origin is collections.abc.Callable or hint is collections.abc.Callable or isinstance(hint, typing.TypeVar):
        return None
    if origin is not None:
        inner = [item if item is Ellipsis else written_type(item) for item in args]
        if any(item is None for item in inner):
            return None
        plain = list if origin in (collections.abc.Collection, collections.abc.Iterable) else origin
        return plain[tuple(inner)]
    return _written_class(hint)


def takes_mapping(hint: Any) -> bool:
    """Whether a type, or a member of a union, is a mapping from names to values."""
    members = typing.get_args(hint) if typing.get_origin(hint) is Union else (hint,)
    return any(arguments_of(members, MAPPINGS, 1))


def dataclasses_of(hint: Any, default: Any = None) -> Iterator[type]:
    """The dataclasses that a type or a default names, and those of their fields."""
    seen: set[type] = set()
    waiting = [(hint, default)]
    while waiting:
        here, value = waiting.pop()
        found = [item for item in (here, type(value)) if inspect.isclass(item) and is_dataclass(item)]
        waiting += [(part, None) for part in typing.get_args(here)]
        for cls in found:
            if cls not in seen:
                seen.add(cls)
                yield cls
                hints = field_types(cls)
                waiting += [(hints.get(item.name), default_of(item)) for item in init_fields(cls)]


def default_of(item: Field[Any]) -> Any:
    """A field's default, made where it is made; ``MISSING`` where there is none."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def init_fields(cls: Any) -> list[Field[Any]]:
    """The fields that a constructor takes."""
    return [item for item in fields(cls) if item.init]


def arguments_of(members: Iterable[Any], origins: tuple[Any, ...], index: int) -> Iterator[Any]:
    """Type arguments of those members of a union that are containers of some kind."""
    for member in members:
        args = typing.get_args(member)
        if typing.get_origin(member) in origins and len(args) > index:
            yield args[index]


def _written_class(hint: Any) -> Any:
    if not inspect.isclass(hint):
        return None
    in_memory = issubclass(hint, (InMemory, Tensor, nn.Module)) or getattr(hint, "_is_protocol", False)
    if hint is type(None) or in_memory:
        return None
    return Any if hint is object else hint


def _is_plain(value: Any) -> bool:
    """Whether a value is made of what YAML has, class paths included."""
    if value is None or isinstance(value, (bool, int, float, str, Enum, Path)):
        return True
    if isinstance(value, type):
        return getattr(sys.modules.get(value.__module__), value.__qualname__, None) is value
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return all(map(_is_plain, (*value, *value.values())))
    if not is_dataclass(value):
        return False
    return _is_plain(type(value)) and all(_is_plain(getattr(value, item.name)) for item in init_fields(value))
