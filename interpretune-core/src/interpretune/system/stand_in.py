"""What stands in the place of an attribute of a module for a while, so that a lasting change goes beneath it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

ABSENT: Any = object()
"""Stands for: there was no such attribute."""

_guard = threading.RLock()  # a finalizer may come by while it is held


class StandIn:
    """Stands in the place of an attribute until ``before`` is put back."""

    before: Any


def guard() -> AbstractContextManager[Any]:
    """The lock of whoever places a stand-in, takes it away, or changes what lies beneath."""
    return _guard


def set_if_empty(module: nn.Module, name: str, make: Callable[[], Any]) -> None:
    """Set an attribute that is absent or None; beneath a stand-in, where one is.

    Args:
        module: The module.
        name: Its attribute.
        make: Gives the value.
    """
    with _guard:
        attributes = vars(module)
        found = attributes.get(name)
        if isinstance(found, StandIn):
            if found.before is ABSENT or found.before is None:
                found.before = make()
        elif found is None:
            attributes[name] = make()


def _renew() -> None:
    """In a forked process, no other thread exists that could release the lock."""
    global _guard  # noqa: PLW0603 - a lock cannot be renewed in place
    _guard = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
