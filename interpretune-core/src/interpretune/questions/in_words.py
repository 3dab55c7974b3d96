"""Settings and calls as a manifest notes them: JSON and words, without folders of this machine."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import attrs

from interpretune.backends.identity import without_folders
from interpretune.operations.objectives import Objective

MOST_TOLD, LONGEST_TOLD = 100, 200
"""Entries of a list, and letters of a setting in words, that are noted."""


def told(value: Any) -> Any:
    """A setting as JSON has it; what JSON has not, in words."""
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (str, Path)):
        return without_folders(str(value))
    if isinstance(value, Objective):
        return value.name
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: told(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): told(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [told(item) for item in value] if len(value) <= MOST_TOLD else f"({len(value)} entries)"
    words = repr(value)
    return words if len(words) <= LONGEST_TOLD else type(value).__name__


def call_in_words(name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> str:
    """A call, with the arguments that are not the defaults, such as ``it.effects(model, tokenizer, prompts, value=1)``.

    Args:
        name: How the function is called.
        function: What it is; arguments that must be given by position are named only.
        given: Its arguments by name.
    """
    parts = []
    for item in inspect.signature(function).parameters.values():
        value = given[item.name]
        if item.default is item.empty and item.kind is not item.KEYWORD_ONLY:
            parts.append(item.name)
        elif value is not item.default and not (isinstance(value, _PLAIN) and value == item.default):
            words = _words(value)
            parts.append(f"{item.name}={words if len(words) <= LONGEST_TOLD else type(value).__name__}")
    return f"{name}({', '.join(parts)})"


_PLAIN = (str, int, float, Path)


def _words(value: Any) -> str:
    """A value as code has it; of what is of other libraries the name alone."""
    if value is None or isinstance(value, _PLAIN):
        return repr(without_folders(str(value)) if isinstance(value, (str, Path)) else value)
    if isinstance(value, (list, tuple)) and len(value) <= MOST_TOLD:
        return f"[{', '.join(map(_words, value))}]"
    if isinstance(value, Mapping) and len(value) <= MOST_TOLD:
        return f"{{{', '.join(f'{_words(name)}: {_words(item)}' for name, item in value.items())}}}"
    if attrs.has(type(value)) or (is_dataclass(value) and not isinstance(value, type)):
        known: Iterable[Any] = attrs.fields(type(value)) if attrs.has(type(value)) else fields(value)
        given = {item.name: getattr(value, item.name) for item in known}
        parts = [f"{name}={_words(item)}" for name, item in given.items() if item is not None]
        return f"{type(value).__name__}({', '.join(parts)})"
    return str(getattr(value, "__qualname__", type(value).__qualname__))
