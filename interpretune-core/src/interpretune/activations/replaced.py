"""Temporarily replaces methods of single modules, for the thread and context that asked for it only."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from interpretune.system.compiled import CALL
from interpretune.system.own_context import OwnContext
from interpretune.system.stand_in import ABSENT, StandIn, guard

Method = Callable[..., Any]
"""A method without ``self``."""


class _Standing(StandIn):
    """Replaces a method of a module; calls what the caller has put there, or the method from before."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        self.before = vars(module).get(name, ABSENT)
        self.entries: tuple[tuple[OwnContext, Method], ...] = ()
        self.__wrapped__ = self._original()  # whoever asks for the signature gets that of the method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.chosen(self.entries)(*args, **kwargs)

    def chosen(self, entries: tuple[tuple[OwnContext, Method], ...]) -> Method:
        """The method for the caller, of those put there last."""
        for here, method in reversed(entries):
            if here.is_here():
                return method
        return self._original()

    def _original(self) -> Method:
        if self.name == CALL and self.before in (ABSENT, None):
            return self.module._call_impl
        if self.before is not ABSENT:
            return self.before
        return getattr(type(self.module), self.name).__get__(self.module)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the module gets the method that was there before."""
        if self.before is ABSENT:
            return getattr, (self.module, self.name)
        return _as_it_is, (self.before,)


@functools.cache
def let_compilers_pass() -> None:
    """Have ``torch.compile`` skip what stands in the place of methods, and compile what is called through it.

    Another thread may compile the model meanwhile.
    """
    from torch._dynamo.decorators import skip  # takes seconds to import; who compiles has done so

    for passed in (_Standing.__call__, _Standing.chosen, _Standing._original, OwnContext.is_here):
        skip(passed)


def _as_it_is(method: Method) -> Method:
    return method


@contextlib.contextmanager
def replaced_methods(methods: Iterable[tuple[nn.Module, str, Method]]) -> Iterator[None]:
    """Replace methods of single modules for the duration of a block, whatever wraps their class.

    Only for the thread and context that asked for it (``interpretune.system.own_context``): a forward of another one
    in the meantime runs the method from before.

    Args:
        methods: Each a module, the name of one of its methods, and what it computes in the block, without ``self``.
    """
    with OwnContext() as here:
        placed: list[tuple[_Standing, tuple[OwnContext, Method]]] = []
        try:
            try:
                for module, name, method in methods:
                    _put(module, name, (here, method), placed)
                yield
            finally:
                _take_away(placed)
        finally:
            _take_away(placed)  # an interrupt may have come in the first


def replaced_method(module: nn.Module, name: str, method: Method) -> contextlib.AbstractContextManager[None]:
    """``replaced_methods`` for one method of one module."""
    return replaced_methods([(module, name, method)])


def standing_method(module: nn.Module, name: str) -> Method:
    """What a method of a module currently does for the caller, even if it has been replaced again since."""
    method: Method = getattr(module, name)
    return method.chosen(method.entries) if isinstance(method, _Standing) else method


def _put(
    module: nn.Module,
    name: str,
    entry: tuple[OwnContext, Method],
    placed: list[tuple[_Standing, tuple[OwnContext, Method]]],
) -> None:
    with guard():
        attributes = vars(module)  # not setattr: some wrappers hand attributes on to what they wrap
        standing = attributes.get(name)
        if not isinstance(standing, _Standing):
            standing = _Standing(module, name)
        placed.append((standing, entry))
        standing.entries = (*standing.entries, entry)
        attributes[name] = standing


def _take_away(placed: list[tuple[_Standing, tuple[OwnContext, Method]]]) -> None:
    with guard():
        while placed:
            standing, entry = placed[-1]
            standing.entries = tuple(item for item in standing.entries if item is not entry)
            attributes = vars(standing.module)
            if not standing.entries and attributes.get(standing.name) is standing:
                if standing.before is ABSENT:
                    del attributes[standing.name]
                else:
                    attributes[standing.name] = standing.before
            placed.pop()
