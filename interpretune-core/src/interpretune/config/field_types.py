"""Types and descriptions of the fields of configuration classes."""

from __future__ import annotations

import builtins
import functools
import importlib
import inspect
import sys
import types
import typing
import weakref
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


_resolved: weakref.WeakKeyDictionary[type, dict[str, Any]] = weakref.WeakKeyDictionary()
"""Types by the class that declares the fields: every object of a configuration asks for them."""


def field_types(cls: type) -> dict[str, Any]:
    """Types of a class's fields by name; types imported for type checkers only become ``InMemory``."""
    names = [name for base in reversed(cls.__mro__) for name in inspect.get_annotations(base)]
    return {name: declared_field(cls, name)[1] for name in dict.fromkeys(names)}


def declared_field(cls: type, name: str) -> tuple[type | None, Any]:
    """The class that declares a field, and the field's type; None and ``Any`` if no class does."""
    for base in cls.__mro__:
        annotations = inspect.get_annotations(base)
        if name in annotations:
            known = _resolved.setdefault(base, {})
            if name not in known:
                names = _Names(vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {})
                hint = _resolve(annotations[name], names)
                if names.lacking:  # a module that is still being imported may have them later
                    return base, hint
                known[name] = hint
            return base, known[name]
    return None, Any


def field_descriptions(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say about their attributes."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= _described(base.__doc__ or "")
    return found


@functools.lru_cache(maxsize=256)
def _described(docstring: str) -> dict[str, str]:
    params = docstring_parser.parse(docstring).params
    return {item.arg_name: " ".join((item.description or "").split()) for item in params}


def _resolve(annotation: Any, names: _Names) -> Any:
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, {}, names, include_extras=True)["it"]
    except (TypeError, AttributeError, SyntaxError, NameError):  # what only type checkers understand
        return InMemory


class _Names(dict[str, Any]):
    """Names of a module, with stand-ins for those it imports for type checkers only.

    Attributes:
        lacking: Whether a stand-in was asked for.
    """

    def __init__(self, names: Mapping[str, Any]) -> None:
        super().__init__(names)
        self.lacking = False

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        self.lacking = True
        return _absent(name)


def _absent(name: str) -> Any:
    return getattr(importlib.import_module(BY_CLASS_PATH[name]), name) if name in BY_CLASS_PATH else InMemory
