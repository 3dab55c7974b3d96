"""Finds what ``torch.compile`` puts around models and their parts, and what lies beneath it.

Compiled code is made for the hooks that a module has when it first runs. torch does not look whether hooks came later:
they would never be called, and nobody would be told.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import nn

from interpretune.system.stand_in import set_if_empty

Model = TypeVar("Model")

WRAPPED = "_orig_mod"
"""The child under which ``torch.compile(module)`` keeps the module."""
BENEATH = "_torchdynamo_orig_callable"
"""The attribute of a compiled function that holds the function."""
CALL = "_compiled_call_impl"
"""The attribute in which ``module.compile()`` keeps the compiled call of a module."""

FOR_GENERATION = "get_compiled_call"
"""The method from which ``generate`` of transformers takes a compiled call."""


def uncompiled(model: Model) -> Model | Any:
    """The module beneath the wrapper that ``torch.compile(module)`` returns; anything else as it is."""
    while isinstance(model, nn.Module) and (inner := _beneath(model)) is not None:
        model = inner  # type: ignore[assignment]
    return model


def named_parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """``named_modules`` of a model without wrappers of compilers among its parts, and without them in the names."""
    for path, module in uncompiled(model).named_modules():
        if WRAPPED not in vars(module)["_modules"]:
            yield ".".join(name for name in path.split(".") if name != WRAPPED), module


def compiled_in_place(model: nn.Module, compiler: Any = None) -> nn.Module:
    """A model that was wrapped by ``torch.compile(model)``, as if ``model.compile()`` had been called instead.

    The same compiler with the same options. The model keeps its class, and the names of its parts and parameters. The
    wrapper stays compiled too.

    Args:
        model: The wrapper, or a model.
        compiler: What compiles, ``dynamo_ctx`` of a wrapper; None: that of this wrapper.

    Returns:
        The model beneath the wrapper; a model without one as it is, unless a compiler is given.
    """
    inner: nn.Module = uncompiled(model)
    compiler = compiler or vars(model).get("dynamo_ctx")
    if compiler is not None:
        set_if_empty(inner, CALL, lambda: compiler(inner._call_impl))  # another thread may run it eagerly now
    return inner


def compiled_methods(model: nn.Module) -> Iterator[tuple[nn.Module, str, Callable[..., Any]]]:
    """The methods of a model and its parts that are compiled: module, name, and the method that is not.

    Also what makes compiled ones: ``generate`` of transformers, with a cache of a fixed size, asks the model for them.
    """
    waiting, seen = [model], {id(model)}
    while waiting:
        module = waiting.pop()
        attributes = vars(module)
        if attributes.get(CALL) is not None:
            yield module, CALL, module._call_impl
        kind: Any = type(module)
        forward_is_compiled, generates = _of_kind(kind)
        if generates:
            yield module, FOR_GENERATION, functools.partial(_call_of, module)
        if forward_is_compiled or "forward" in attributes:
            method = beneath(attributes.get("forward", type(module).forward))
            if method is not None:
                yield module, "forward", method if "forward" in attributes else method.__get__(module)
        for child in attributes["_modules"].values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                waiting.append(child)


def beneath(function: Any) -> Callable[..., Any] | None:
    """The function that was compiled; None if none was."""
    found = None
    while (inner := getattr(function, BENEATH, None)) is not None:
        found = function = inner
    return found


def compiled_names(module: nn.Module) -> Iterator[str]:
    """The attributes of a module that are compiled methods of its own class, and compute the same as these."""
    for name, value in vars(module).items():
        method = beneath(value)
        if getattr(method, "__self__", None) is module:
            function: Any = method.__func__  # type: ignore[union-attr]  # of a bound method
            if function is getattr(type(module), function.__name__, None):
                yield name


def _beneath(module: nn.Module) -> nn.Module | None:
    return vars(module).get("_modules", {}).get(WRAPPED)


def _call_of(module: nn.Module, *_: object, **__: object) -> Callable[..., Any]:
    return module.__call__


@functools.lru_cache(maxsize=1024)
def _of_kind(kind: Any) -> tuple[bool, bool]:
    """Whether the forward of a class is compiled, and whether it compiles its calls while it generates."""
    return hasattr(kind.forward, BENEATH), hasattr(kind, FOR_GENERATION)
