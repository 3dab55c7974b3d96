"""The lock of a model: calls of the library that touch one model take turns."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from weakref import WeakKeyDictionary

from torch import nn


class _Locks:
    """The locks of all models, by module."""

    def __init__(self) -> None:
        self.by_module: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
        self.guard = threading.RLock()  # a finalizer may come by while it is held


_locks = _Locks()
if hasattr(os, "register_at_fork"):  # in a forked process no other thread lives that could give a lock back
    os.register_at_fork(after_in_child=_locks.__init__)  # type: ignore[misc]


def model_lock(model: nn.Module) -> threading.RLock:
    """The lock of a model, which every call of the library that runs the model holds for its duration.

    Models that share modules share the lock: a wrapper (of peft, of an adapter) and what it wraps, whichever was seen
    first. A model that was copied has a lock of its own. The lock is re-entrant: who holds it may call the library.
    Nothing is kept on the model, and the lock goes when the model goes.

    Args:
        model: Any module; ``session.module.model`` for the model of a session.

    Returns:
        A context manager: ``with model_lock(model): ...``.
    """
    lock = _locks.by_module.get(model)
    return lock if lock is not None else _shared_lock(model)


def _shared_lock(model: nn.Module) -> threading.RLock:
    with _locks.guard:
        parts = list(_parts(model))
        known = (_locks.by_module.get(part) for part in parts)
        lock = next((lock for lock in known if lock is not None), None) or threading.RLock()
        _locks.by_module.update(dict.fromkeys(parts, lock))
        return lock


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of a model, from the outermost, and those that it keeps as plain attributes."""
    seen: set[nn.Module] = set()
    waiting = [model]
    while waiting:
        for module in waiting.pop().modules():
            if module not in seen:
                seen.add(module)
                yield module
                waiting += [item for item in vars(module).values() if isinstance(item, nn.Module)]
