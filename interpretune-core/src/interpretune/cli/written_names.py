"""Checks of what a file says: names of fields at any depth, class paths, and words of enumerations."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from enum import Enum
from typing import Any, Union

from interpretune.cli.written_fields import MAPPINGS, SEQUENCES, arguments_of, default_of, init_fields, written_type
from interpretune.config.field_types import field_types
from interpretune.errors import ConfigurationError


def refuse_unknown(names: Iterable[Any], known: Collection[str], where: str, hint: str = "") -> None:
    """Refuse names that are not among the known ones (``ConfigurationError``)."""
    for name in names:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            raise ConfigurationError(
                f"{where} has no field {name!r}. "
                + (f"Did you mean {near[0]!r}? " if near else "")
                + hint
                + f"Its fields are {', '.join(known)}."
            )


def check_fields(values: Any, cls: type, where: str, hint: str = "") -> None:
    """Refuse values for fields that a class has not, or no file can give, at any depth (``ConfigurationError``)."""
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{where} is {values!r}; it takes a mapping with fields of {cls.__qualname__}.")
    known, hints = {item.name: item for item in init_fields(cls)}, field_types(cls)
    refuse_unknown(values, known, where, hint)
    for name, value in values.items():
        field_hint = hints.get(name, Any)
        if value is not None and written_type(field_hint) is None:
            raise ConfigurationError(
                f"{where}.{name} cannot be given in a file: it takes objects that only code has. Write a script that "
                "makes an ITSession with them."
            )
        check_value(value, field_hint, f"{where}.{name}", default_of(known[name]))


def check_value(value: Any, hint: Any, where: str, current: Any = None) -> None:
    """Check a value for a field of some type: see ``check_fields``."""
    written = written_type(hint)
    members = typing.get_args(written) if typing.get_origin(written) is Union else (written,)
    if isinstance(value, list):
        for i, item in enumerate(value):
            for inner in arguments_of(members, SEQUENCES, 0):
                check_value(item, inner, f"{where}[{i}]")
    elif isinstance(value, Mapping):
        _check_mapping(value, members, where, current)
    elif isinstance(value, bool) and str in members and not {bool, Any} & set(members):
        raise ConfigurationError(
            f"{where} is {str(value).lower()}, and takes words. YAML reads yes, no, on and off as true and false: put "
            "words into quotes."
        )
    elif isinstance(value, str):
        for member in () if str in members else members:
            if inspect.isclass(member) and issubclass(member, Enum) and value not in member.__members__:
                near = get_close_matches(value, member.__members__, n=1)
                raise ConfigurationError(
                    f"{where} is {value!r}. "
                    + (f"Did you mean {near[0]!r}? " if near else "")
                    + f"There are {', '.join(member.__members__)}."
                )


def import_class(path: Any, where: str) -> type:
    """The class of a path such as ``package.module.Class`` (``ConfigurationError``)."""
    module_name, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    if not module_name:
        raise ConfigurationError(f"{where} is {path!r}; give the path of a class, package.module.Class.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        own = error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}."))
        raise ConfigurationError(
            f"{where} is {path!r}, and "
            + (
                f"there is no module {error.name!r}. "
                if own
                else f"{module_name} needs {error.name!r}, which is not installed. "
            )
            + "Modules are found where they are installed and in the current directory."
        ) from error
    except Exception as error:  # whatever a module of a user raises
        raise ConfigurationError(
            f"{where} is {path!r}, and importing {module_name} fails: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        classes = [key for key in dir(module) if not key.startswith("_")]
        near = get_close_matches(name, classes, n=1)
        raise ConfigurationError(
            f"{where} is {path!r}, and {module_name} has no class {name}."
            + (f" Did you mean {module_name}.{near[0]}?" if near else "")
        )
    return found


def init_args(value: Any) -> Any:
    """The arguments in a value that may name its class: ``{class_path: ..., init_args: {...}}`` or the arguments."""
    return (value.get("init_args") or {}) if isinstance(value, Mapping) and "class_path" in value else value


def _check_mapping(value: Mapping[Any, Any], members: tuple[Any, ...], where: str, current: Any) -> None:
    choices = [item for item in members if inspect.isclass(item) and is_dataclass(item)]
    by_path = any(item is Any or (inspect.isclass(item) and item.__module__ != "builtins") for item in members)
    if "class_path" in value and by_path:
        refuse_unknown(value, ("class_path", "init_args", "dict_kwargs"), where)
        path = value["class_path"]
        cls = import_class(path, f"{where}.class_path") if isinstance(path, str) and "." in path else None
        if cls is not None and is_dataclass(cls) and "dict_kwargs" not in value:
            check_fields(value.get("init_args") or {}, cls, where)
    elif is_dataclass(current) and not inspect.isclass(current):
        _check_default(value, type(current), choices, where)
    elif choices and not any(arguments_of(members, MAPPINGS, 1)):
        check_fields(value, _most_like(value, choices), where)
    else:
        for inner in arguments_of(members, MAPPINGS, 1):
            for name, item in value.items():
                check_value(item, inner, f"{where}.{name}")


def _check_default(value: Mapping[Any, Any], cls: type, choices: list[type], where: str) -> None:
    """Values without a class change the fields of the default."""
    names = {item.name for item in init_fields(cls)}
    if set(value) - names:
        other = _most_like(value, choices) if choices else cls
        if not set(value) - {item.name for item in init_fields(other)}:
            raise ConfigurationError(
                f"{where} sets {', '.join(map(repr, set(value) - names))}, which {other.__qualname__} has and the "
                f"default ({cls.__qualname__}) has not. Write class_path: {other.__module__}.{other.__qualname__} and "
                "put the fields below init_args."
            )
    check_fields(value, cls, where)


def _most_like(value: Mapping[Any, Any], choices: list[type]) -> type:
    def fit(cls: type) -> tuple[int, int]:
        names = [item.name for item in init_fields(cls)]
        similar = sum(bool(get_close_matches(str(name), names, n=1)) for name in value)
        return sum(name in names for name in value), similar

    return max(choices, key=fit)
