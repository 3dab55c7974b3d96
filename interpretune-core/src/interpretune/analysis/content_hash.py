"""Hashes of content: equal where two things compute the same, different where a setting or a line of code differs.

What comes from another package counts by its name; the versions of packages stand beside the hashes.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from operator import itemgetter
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from interpretune.errors import PlanError

PLAIN = (bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device, type(None), type(...))
PASSING = frozenset({"training", "device", "dtype", "name_or_path"})
"""Attributes of modules that a run changes, that their weights tell, or that say where they are from."""


def hash_of(value: Any, owner: str) -> str:
    """Hash of what something depends on.

    Args:
        value: Numbers, strings, enum members, tensors, arrays, modules of torch, functions and classes, value objects
            of attrs and dataclasses, and containers of all these.
        owner: What depends on it, in words.

    Raises:
        PlanError: The content of the value cannot be hashed.
    """
    return _Hasher(owner).of(value)


def hash_module(module: nn.Module, owner: str) -> str:
    """Hash of a module of torch: classes, plain settings, parameters and buffers of all its parts.

    Args:
        module: The module.
        owner: What depends on it, in words.
    """
    return _Hasher(owner).of(module)


def plain_settings(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Public attributes that are numbers, words or lists of them, and that no run changes."""
    return {
        name: value
        for name, value in sorted(((str(name), value) for name, value in values.items()), key=itemgetter(0))
        if not name.startswith("_") and name not in PASSING and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return isinstance(value, PLAIN)


class _Hasher:
    """Hashes one thing; functions and modules that are under way are not entered again."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._seen: set[int] = set()

    def of(self, value: Any) -> str:
        digest = hashlib.sha256()
        self._feed(value, digest)
        return digest.hexdigest()

    def _feed(self, value: Any, digest: Any) -> None:
        if isinstance(value, Tensor):
            self._feed_numbers(value.detach().contiguous().cpu(), digest)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self._feed_numbers(torch.from_numpy(np.ascontiguousarray(value)), digest)
        elif isinstance(value, nn.Module):
            self._feed_module(value, digest)
        elif isinstance(value, PLAIN):
            digest.update(f"{type(value).__name__} {value!r}".encode())
        elif isinstance(value, Mapping):
            for key in sorted(value, key=str):
                digest.update(f"{key}:{self.of(value[key])}".encode())
        elif isinstance(value, (frozenset, set)):
            digest.update(json.dumps(sorted(map(self.of, value))).encode())
        elif is_dataclass(value) or attrs.has(type(value)):
            self._feed_object(value, digest)
        elif isinstance(value, Sequence):
            digest.update(f"{len(value)}[{','.join(map(self.of, value))}]".encode())
        elif isinstance(value, ModuleType):
            digest.update(value.__name__.encode())
        elif callable(value):
            self._feed_callable(value, digest)
        else:
            raise self._refusal(value)

    def _feed_numbers(self, dense: Tensor, digest: Any) -> None:
        digest.update(f"{dense.dtype}{tuple(dense.shape)}".encode())
        if dense.numel():
            digest.update(dense.reshape(-1).view(torch.uint8).numpy().data)

    def _feed_object(self, value: Any, digest: Any) -> None:
        if isinstance(value, type):
            self._feed_class(value, digest)
            return
        names = [item.name for item in (fields(value) if is_dataclass(value) else attrs.fields(type(value)))]
        digest.update(f"{type(value).__module__}.{type(value).__qualname__}".encode())
        self._feed({name: getattr(value, name) for name in names}, digest)

    def _feed_module(self, module: nn.Module, digest: Any) -> None:
        for name, part in module.named_modules():
            digest.update(f"{name}={type(part).__module__}.{type(part).__qualname__}".encode())
            self._feed(plain_settings(vars(part)), digest)
        for name, tensor in _tensors_of(module):
            digest.update(name.encode())
            self._feed(tensor, digest)

    def _feed_callable(self, value: Any, digest: Any) -> None:
        if isinstance(value, functools.partial):
            self._feed([value.func, list(value.args), value.keywords], digest)
        elif isinstance(value, MethodType):
            self._feed_callable(value.__func__, digest)
        elif isinstance(value, type):
            self._feed_class(value, digest)
        elif isinstance(value, FunctionType):
            self._feed_function(value, digest)
        elif hasattr(value, "__wrapped__"):
            self._feed_callable(value.__wrapped__, digest)
        elif isinstance(value, BuiltinFunctionType) or not hasattr(value, "__dict__"):
            digest.update(f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}".encode())
        else:
            raise self._refusal(value)

    def _feed_class(self, value: type, digest: Any) -> None:
        digest.update(f"{value.__module__}.{value.__qualname__}".encode())
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if _is_own(value):
            for name, member in sorted(vars(value).items()):
                inner = getattr(member, "__func__", getattr(member, "fget", member))
                if isinstance(inner, FunctionType):
                    self._feed_function(inner, digest)
                elif _is_plain(member) and not name.startswith("__"):
                    digest.update(f"{name}={member!r}".encode())

    def _feed_function(self, function: FunctionType, digest: Any) -> None:
        digest.update(f"{function.__module__}.{function.__qualname__}".encode())
        if id(function) in self._seen:
            return
        self._seen.add(id(function))
        self._feed_code(function.__code__, digest, doc=function.__doc__)
        self._feed([function.__defaults__, function.__kwdefaults__ or {}], digest)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        closed = {name: cell.cell_contents for name, cell in cells}
        known = function.__globals__
        referred = {name: known[name] for name in _names(function.__code__) if name in known}
        for name, value in sorted({**referred, **closed}.items()):
            digest.update(name.encode())
            foreign = isinstance(value, (FunctionType, type)) and not _shares_package(value, function)
            if foreign:
                digest.update(f"{value.__module__}.{value.__qualname__}".encode())
            else:
                self._feed(value, digest)

    def _feed_code(self, code: CodeType, digest: Any, doc: str | None = None) -> None:
        digest.update(code.co_code)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._feed_code(constant, digest)
            elif constant is None or constant != doc:
                self._feed(constant, digest)
        digest.update(repr(code.co_names).encode())

    def _refusal(self, value: Any) -> PlanError:
        return PlanError(
            f"{self._owner} depends on a {type(value).__name__}, whose content cannot be hashed: give it as options of "
            "numbers, strings, tensors and modules, so that other settings are never taken for the same analysis."
        )


def _tensors_of(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """All parameters and buffers by name, also those that no checkpoint has."""
    return sorted([*module.named_parameters(), *module.named_buffers()], key=lambda item: item[0])


def _is_own(value: Any) -> bool:
    """Whether the code is not interpretune's, torch's or Python's, whose versions are known."""
    package = str(getattr(value, "__module__", "")).split(".")[0]
    return package not in ("builtins", "interpretune", "torch", "numpy", "transformers")


def _shares_package(value: Any, function: FunctionType) -> bool:
    if value.__module__ == function.__module__:
        return True
    one, other = (str(item.__module__).split(".")[0] for item in (value, function))
    return one == other and _is_own(value)


def _names(code: CodeType) -> set[str]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)
