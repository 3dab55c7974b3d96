"""Calls hooks with pluggy, whose own frames stay out of the traceback of an error that an implementation raises."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import pluggy

PLUGGY = str(Path(pluggy.__file__).parent)


class HookCaller:
    """One hook of a stack."""

    def __init__(self, hook: pluggy.HookCaller) -> None:
        self._hook = hook
        self.spec = hook.spec
        self.get_hookimpls = hook.get_hookimpls

    def __call__(self, **arguments: Any) -> Any:
        """What the implementations give, as pluggy combines it."""
        try:
            return self._hook(**arguments)
        except BaseException as error:
            error.__traceback__ = _without_pluggy(error.__traceback__)
            raise


class HookCallers:
    """The hooks of a stack, as attributes."""

    def __init__(self, relay: pluggy.HookRelay, names: Iterable[str]) -> None:
        for name in names:
            setattr(self, name, HookCaller(getattr(relay, name)))

    def __getattr__(self, name: str) -> HookCaller:  # for type checkers, and to say what is missing
        raise AttributeError(f"There is no hook {name!r}.")


def _without_pluggy(traceback: TracebackType | None) -> TracebackType | None:
    kept = []  # in a loop: a step that recursed without end has left more frames than functions may call each other
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith((PLUGGY, __file__)):
            kept.append(traceback)
        traceback = traceback.tb_next
    found = None
    for item in reversed(kept):
        found = TracebackType(found, item.tb_frame, item.tb_lasti, item.tb_lineno)
    return found
