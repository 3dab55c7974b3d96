"""Notes every hook call of the sessions that are made in a block."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import attrs

from interpretune.plugins.stack import ExecutionContext, build_context


class _NotingHooks:
    """Stands before a context's hooks and notes their calls."""

    def __init__(self, hooks: Any, calls: list[str]) -> None:
        self._hooks, self._calls = hooks, calls

    def __getattr__(self, name: str) -> Any:
        hook = getattr(self._hooks, name)
        if not name.startswith("it_"):
            return hook

        return _NotingCaller(hook, functools.partial(self._calls.append, name))


class _NotingCaller:
    """Stands before one hook. Hooks whose implementations are called one by one are noted when these are looked up."""

    def __init__(self, hook: Any, note: Callable[[], None]) -> None:
        self._hook, self._note = hook, note

    def __call__(self, **arguments: Any) -> Any:
        self._note()
        return self._hook(**arguments)

    def get_hookimpls(self) -> Any:
        self._note()
        return self._hook.get_hookimpls()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hook, name)


@contextlib.contextmanager
def hook_calls() -> Iterator[list[str]]:
    """Names of the hooks that sessions made in the block call, in order, for as long as these sessions live."""
    calls: list[str] = []

    def recorded(names: Iterable[str]) -> ExecutionContext:
        context = build_context(names)
        return attrs.evolve(context, hook=_NotingHooks(context.hook, calls))  # type: ignore[arg-type]

    with mock.patch("interpretune.session.session.build_context", recorded):
        yield calls
