"""Calls the implementations of a hook one by one, for callers that need to know which of them have returned.

For hooks where all run and results are ignored. Wrappers stay around the others, as in pluggy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pluggy


def implementations_of(hook: Any) -> list[pluggy.HookImpl]:
    """Implementations of one hook in call order: wrappers first, the outermost before the others."""
    return list(reversed(hook.get_hookimpls()))


def call_in_order(
    implementations: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any], returned: list[pluggy.HookImpl]
) -> None:
    """Call implementations until one fails.

    Args:
        implementations: In call order.
        arguments: Of the hook, by name.
        returned: Those that have returned are appended.
    """

    def call_plain() -> None:
        for item in implementations:
            if not _wraps(item):
                item.function(*_given(item, arguments))
                returned.append(item)

    _inside_wrappers(implementations, arguments, call_plain, returned)()


def call_all_in_reverse(
    implementations: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any]
) -> list[BaseException]:
    """Call all implementations, the last first, and return what they raise; wrappers do not see those errors."""
    failed: list[BaseException] = []

    def call(call_one: Callable[[], object]) -> None:
        try:
            call_one()
        except BaseException as error:  # noqa: BLE001 - the caller raises it when all were called
            failed.append(error)

    def call_plain() -> None:
        for item in reversed(implementations):
            if not _wraps(item):
                call(partial(item.function, *_given(item, arguments)))

    def call_around(item: pluggy.HookImpl, inner: Callable[[], None]) -> None:
        once = _Once(inner)
        call(partial(_call_inside, item, arguments, once))
        once.call_if_not_called()  # the wrapper failed before its `yield`

    around = call_plain
    for item in reversed(implementations):
        if _wraps(item):
            around = partial(call_around, item, around)
    around()
    return failed


class _Once:
    """A function, and whether it was called."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function, self._called = function, False

    def __call__(self) -> None:
        self._called = True
        self._function()

    def call_if_not_called(self) -> None:
        if not self._called:
            self()


def _inside_wrappers(
    implementations: Sequence[pluggy.HookImpl],
    arguments: Mapping[str, Any],
    call: Callable[[], None],
    returned: list[pluggy.HookImpl],
) -> Callable[[], None]:
    def call_inside(item: pluggy.HookImpl, inner: Callable[[], None]) -> None:
        _call_inside(item, arguments, inner)
        returned.append(item)

    for item in reversed(implementations):
        if _wraps(item):
            call = partial(call_inside, item, call)
    return call


def _call_inside(item: pluggy.HookImpl, arguments: Mapping[str, Any], call: Callable[[], None]) -> None:
    """Call inside a wrapper, whose ``yield`` gives None: results are ignored."""
    wrapper: Callable[..., Any] = item.function
    if item.wrapper:
        with contextlib.contextmanager(wrapper)(*_given(item, arguments)):
            call()
        return
    generator = wrapper(*_given(item, arguments))  # pluggy's old style, in which an error comes as an outcome
    next(generator)
    outcome = pluggy.Result.from_call(call)
    with contextlib.suppress(StopIteration):
        generator.send(outcome)
    outcome.get_result()


def _wraps(item: pluggy.HookImpl) -> bool:
    return item.wrapper or item.hookwrapper


def _given(item: pluggy.HookImpl, arguments: Mapping[str, Any]) -> list[Any]:
    return [arguments[name] for name in item.argnames]
