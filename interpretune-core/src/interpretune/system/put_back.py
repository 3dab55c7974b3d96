"""Values that are changed for a time and put back, whichever of several threads is done first.

Two threads that each save what they find and put it back at the end ruin it: the second saves what the first has set.
Here the one that leaves first hands what it found to the one that came after it.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_guard = threading.RLock()  # a finalizer may come by while it is held
_open: list[Changed[Any]] = []


class Changed(Generic[T]):
    """Values of some owners that are changed between ``begin`` and ``end``.

    Both may be called again after an interrupt; ``end`` does what is left to do. Frames that must not lose what they
    have changed nest two ``try`` blocks that end with it, since an interrupt may come in the first ``finally``.
    """

    def __init__(
        self, what: str, owners: Iterable[T], read: Callable[[T], Any], write: Callable[[T, Any], object]
    ) -> None:
        """Name what will be changed.

        Args:
            what: Names the value; values of one name and owner are the same place.
            owners: Whose value it is; strings, or objects that are told apart by identity.
            read: Gets an owner's value.
            write: Sets it.
        """
        self._what, self._owners, self._read, self._write = what, list(owners), read, write
        self._found: dict[object, tuple[T, Any]] = {}

    def begin(self) -> None:
        """Note the values."""
        with _guard:
            self._found = {_key(owner): (owner, self._read(owner)) for owner in self._owners}
            _open.append(self)

    def end(self) -> None:
        """Put the values back, those excepted that somebody who came later has changed too and still needs."""
        with _guard:
            if self not in _open:
                return
            later = [item for item in _open[_open.index(self) + 1 :] if item._what == self._what]
            for key, found in self._found.items():
                heir = next((item for item in later if key in item._found), None)
                if heir is None:
                    self._write(*found)
                else:
                    heir._found[key] = found
            _open.remove(self)

    def values(self) -> list[Any]:
        """The values as they are now."""
        return [self._read(owner) for owner in self._owners]

    def put(self, values: Iterable[Any]) -> None:
        """Change the values to these."""
        for owner, value in zip(self._owners, values, strict=True):
            self._write(owner, value)


def _key(owner: object) -> object:
    return owner if isinstance(owner, str) else id(owner)


@contextlib.contextmanager
def attribute_put_back(owners: Iterable[T], name: str) -> Iterator[None]:
    """Let a block change an attribute of some objects."""
    with values_put_back(
        name, owners, lambda owner: getattr(owner, name), lambda owner, value: setattr(owner, name, value)
    ):
        yield


@contextlib.contextmanager
def values_put_back(
    what: str, owners: Iterable[T], read: Callable[[T], Any], write: Callable[[T, Any], object]
) -> Iterator[None]:
    """Let a block change values of some owners; the arguments are those of ``Changed``."""
    changed = Changed(what, owners, read, write)
    try:
        try:
            changed.begin()
            yield
        finally:
            changed.end()
    finally:
        changed.end()


# ---------------------------------------------------------------------------------------------------------------- draws


@contextlib.contextmanager
def random_state_put_back() -> Iterator[None]:
    """Let a block seed the generators of Python and of torch, on the CPU and on all CUDA devices, and draw.

    Such blocks, and ``with_own_draws``, of different threads take turns; see ``draws_given_up``.
    """
    own = _OwnDraws(_random_states(range(torch.cuda.device_count()), "python"))
    try:
        try:
            own.begin()
            yield
        finally:
            own.end()
    finally:
        own.end()


def with_own_draws(work: Callable[[], R], devices: Iterable[torch.device] = ()) -> R:
    """What work returns that seeds and draws from torch's generators, of the CPU and ``devices``; they are put back."""
    own = _OwnDraws(_random_states(device.index or 0 for device in devices))
    try:
        try:
            own.begin()
            return work()
        finally:
            own.end()
    finally:
        own.end()


@contextlib.contextmanager
def draws_given_up() -> Iterator[None]:
    """Let other threads draw while this one waits for something in a block, and go on with its own draws afterwards.

    There is one random state for all threads, so that pieces of work that draw take turns. Nobody keeps the turn while
    waiting for the lock of a model, which somebody may hold who waits for the turn.
    """
    blocks = list(_mine.blocks)
    if not blocks:
        yield
        return
    drawn: list[list[Any]] = []
    for block in reversed(blocks):
        drawn.append(block.changed.values())
        block.changed.end()
    _turn.give()
    try:
        yield
    finally:
        _turn.take()
        for block in blocks:
            block.changed.begin()
            block.changed.put(drawn.pop())


def let_others_draw() -> None:
    """Give the turn away once, if this thread has it and another waits for it."""
    if _mine.blocks and _turn.is_waited_for():
        with draws_given_up():
            pass


class _Turn:
    """Held by the thread whose draws come from the random state."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.next = threading.RLock()  # held by who waits, so that who gives the turn away does not have it again first

    def take(self) -> None:
        self.next.acquire()
        self.lock.acquire()
        self.next.release()

    def give(self) -> None:
        for lock in (self.lock, self.next):
            with contextlib.suppress(RuntimeError):  # this thread does not hold it
                lock.release()

    def is_waited_for(self) -> bool:
        if self.next.acquire(blocking=False):
            self.next.release()
            return False
        return True


class _OwnDraws:
    """A block that draws; ``end`` may be called again after an interrupt."""

    def __init__(self, changed: Changed[str]) -> None:
        self.changed = changed

    def begin(self) -> None:
        _mine.blocks.append(self)
        if len(_mine.blocks) == 1:
            _turn.take()
        self.changed.begin()

    def end(self) -> None:
        self.changed.end()
        if self in _mine.blocks:
            if len(_mine.blocks) == 1:
                _turn.give()
            _mine.blocks.remove(self)


class _Mine(threading.local):
    """The blocks of a thread that draw, from the outermost."""

    def __init__(self) -> None:
        self.blocks: list[_OwnDraws] = []


_turn = _Turn()
_mine = _Mine()


def _random_states(cuda: Iterable[int], *others: str) -> Changed[str]:
    def read(generator: str) -> Any:
        if generator == "python":
            return random.getstate()
        return torch.get_rng_state() if generator == "cpu" else torch.cuda.get_rng_state(generator)

    def write(generator: str, state: Any) -> None:
        if generator == "python":
            random.setstate(state)
        elif generator == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, generator)

    what = f"random state of thread {threading.get_ident()}"  # threads take turns: none changes what another has found
    return Changed(what, [*others, "cpu", *(f"cuda:{index}" for index in cuda)], read, write)


def _renew() -> None:
    """In a forked process no other thread lives that could give a lock back."""
    global _guard  # noqa: PLW0603 - a lock cannot be renewed in place
    _guard = threading.RLock()
    _turn.__init__()  # type: ignore[misc]
    if _mine.blocks:
        _turn.take()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
