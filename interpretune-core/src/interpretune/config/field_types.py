"""Types and descriptions of the fields of configuration classes."""

from __future__ import annotations

import builtins
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

import docstring_parser

BY_CLASS_PATH = {"PretrainedConfig": "transformers"}
"""Types that are imported for type checkers only but that a file can still build, with their modules."""


class _OfType(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return cls  # of a module that only type checkers import


class InMemory(metaclass=_OfType):
    """Stands for a type that only type checkers import: its objects come from code, never from a file."""

    def __class_getitem__(cls, item: Any) -> type[InMemory]:
        return cls


def field_types(cls: type) -> dict[str, Any]:
    """Types of a class's fields by name; types imported for type checkers only become ``InMemory``."""
    names = [name for base in reversed(cls.__mro__) for name in inspect.get_annotations(base)]
    return {name: declared_field(cls, name)[1] for name in dict.fromkeys(names)}


def declared_field(cls: type, name: str) -> tuple[type | None, Any]:
    """The class that declares a field, and the field's type; None and ``Any`` if no class does."""
    for base in cls.__mro__:
        annotations = inspect.get_annotations(base)
        if name in annotations:
            names = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
            return base, _resolve(annotations[name], names)
    return None, Any


def field_descriptions(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say about their attributes."""
    found = {}
    for base in reversed(cls.__mro__):
        for item in docstring_parser.parse(base.__doc__ or "").params:
            found[item.arg_name] = " ".join((item.description or "").split())
    return found


def _resolve(annotation: Any, names: Mapping[str, Any]) -> Any:
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, {}, _Names(names), include_extras=True)["it"]
    except (TypeError, AttributeError, SyntaxError, NameError):  # what only type checkers understand
        return InMemory


class _Names(dict[str, Any]):
    """Names of a module, with stand-ins for those it imports for type checkers only."""

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        return _absent(name)


def _absent(name: str) -> Any:
    return getattr(importlib.import_module(BY_CLASS_PATH[name]), name) if name in BY_CLASS_PATH else InMemory
