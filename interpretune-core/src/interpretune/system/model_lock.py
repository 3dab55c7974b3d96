"""The lock of a model: calls of the library that touch one model take turns."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from interpretune.system.put_back import draws_given_up, let_others_draw

OF_ALL_MODULES = frozenset(vars(nn.Module()))
"""Attributes of torch's own, in which modules are children, or none."""


class ModelLock:
    """The lock of a model: a context manager that may be entered again by the thread that is in it.

    A model whose parts had locks of their own before is locked by all of them, taken in one order everywhere.

    Attributes:
        locks: The locks, each with its number in the order in which they are taken.
    """

    def __init__(self, locks: Iterable[tuple[int, threading.RLock]]) -> None:
        self.locks = tuple(sorted(locks, key=itemgetter(0)))

    def __enter__(self) -> None:
        taken: list[threading.RLock] = []
        try:
            for _, lock in self.locks:
                if lock.acquire(blocking=False):
                    taken.append(lock)
                    continue
                with draws_given_up():
                    lock.acquire()
                    taken.append(lock)
            let_others_draw()
        except BaseException:
            for lock in reversed(taken):
                lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        for _number, lock in reversed(self.locks):
            lock.release()


class _Locks:
    """The locks of all models, by module."""

    def __init__(self) -> None:
        self.by_module: WeakKeyDictionary[nn.Module, ModelLock] = WeakKeyDictionary()
        self.numbers = itertools.count()
        self.guard = threading.RLock()  # a finalizer may come by while it is held


_locks = _Locks()
if hasattr(os, "register_at_fork"):  # in a forked process no other thread lives that could give a lock back
    os.register_at_fork(after_in_child=_locks.__init__)  # type: ignore[misc]


def model_lock(model: nn.Module) -> ModelLock:
    """The lock of a model, which every call of the library that runs the model holds for its duration.

    Models that share modules share the lock: a wrapper (of peft, of an adapter) and what it wraps, whichever was seen
    first. A wrapper around several models that were seen before has the locks of all of them. A model that was copied
    has a lock of its own. The lock is re-entrant: who holds it may call the library. Nothing is kept on the model, and
    the lock goes when the model goes.

    Args:
        model: Any module; ``session.module.model`` for the model of a session.

    Returns:
        A context manager: ``with model_lock(model): ...``.
    """
    lock = _locks.by_module.get(model)
    return lock if lock is not None else _shared_lock(model)


def _shared_lock(model: nn.Module) -> ModelLock:
    with _locks.guard:
        parts = list(_parts(model))
        known = [lock for part in parts if (lock := _locks.by_module.get(part)) is not None]
        locks = {item for lock in known for item in lock.locks} or {(next(_locks.numbers), threading.RLock())}
        shared = next((lock for lock in known if len(lock.locks) == len(locks)), None) or ModelLock(locks)
        for part in parts:
            _locks.by_module.setdefault(part, shared)  # never another one in its place: somebody may hold it
        return shared


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of a model, from the outermost, and those that it keeps as plain attributes."""
    seen: set[nn.Module] = set()
    waiting = [model]
    while waiting:
        for module in waiting.pop().modules():
            if module not in seen:
                seen.add(module)
                yield module
                waiting += _in([value for name, value in list(vars(module).items()) if name not in OF_ALL_MODULES])


def _in(value: Any) -> Iterator[nn.Module]:
    """The modules in lists, tuples, sets and dictionaries."""
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, nn.Module):
            yield item
        elif isinstance(item, (list, tuple, set, frozenset, dict)) and id(item) not in seen:
            seen.add(id(item))
            waiting += item.values() if isinstance(item, dict) else item
