"""Hashes of content: equal where two things compute the same, different where a setting or a line of code differs."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from types import CodeType, FunctionType, ModuleType
from typing import Any

import attrs
import torch
from torch import Tensor

from interpretune.errors import PlanError


def hash_of(value: Any, owner: str) -> str:
    """Hash of what something depends on: numbers, strings, tensors, enum members, value objects, containers of them.

    Args:
        value: The value.
        owner: What depends on it, in words.

    Raises:
        PlanError: The content of the value cannot be hashed.
    """
    digest = hashlib.sha256(type(value).__name__.encode())
    if isinstance(value, Tensor):
        dense = value.detach().cpu().contiguous()
        digest.update(f"{dense.dtype}{tuple(dense.shape)}".encode())
        digest.update(dense.reshape(-1).view(torch.uint8).numpy().tobytes() if dense.numel() else b"")
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(f"{key}:{hash_of(value[key], owner)}".encode())
    elif isinstance(value, (frozenset, set)):
        digest.update(json.dumps(sorted(hash_of(item, owner) for item in value)).encode())
    elif value is None or value is ... or isinstance(value, (bool, int, float, complex, str, bytes, Enum)):
        digest.update(repr(value).encode())
    elif is_dataclass(value) or attrs.has(type(value)):
        names = [item.name for item in (fields(value) if is_dataclass(value) else attrs.fields(type(value)))]
        digest.update(hash_of({name: getattr(value, name) for name in names}, owner).encode())
    elif isinstance(value, Sequence):
        for item in value:
            digest.update(hash_of(item, owner).encode())
    elif callable(value):
        hash_function(value, digest, owner)
    else:
        raise PlanError(
            f"{owner} depends on a {type(value).__name__}, whose content cannot be hashed: give it as "
            "options of numbers, strings and tensors, so that other settings are never taken for the same analysis."
        )
    return digest.hexdigest()


def hash_function(function: Any, digest: Any, owner: str, seen: set[int] | None = None) -> None:
    """Feed a function's code to a digest, with its closure and what it refers to of its own module.

    Args:
        function: The function; of other callables only the name counts.
        digest: A ``hashlib`` object.
        owner: What depends on the function, in words.
        seen: Ids of functions that are under way.

    Raises:
        PlanError: It refers to an object whose content cannot be hashed.
    """
    seen = set() if seen is None else seen
    if isinstance(function, functools.partial):
        digest.update(hash_of([list(function.args), function.keywords], owner).encode())
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
            hash_function(value, digest, owner, seen)
        elif isinstance(value, (FunctionType, ModuleType, type)) or callable(value):
            digest.update(f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', name)}".encode())
        elif name in closed or isinstance(value, (bool, int, float, str, tuple, Tensor)):
            digest.update(hash_of(value, owner).encode())


def _hash_code(code: CodeType, digest: Any, owner: str) -> None:
    digest.update(code.co_code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _hash_code(constant, digest, owner)
        else:
            digest.update(hash_of(constant, owner).encode())
    digest.update(repr(code.co_names).encode())


def _names(code: CodeType) -> set[str]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)
