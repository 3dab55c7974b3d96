"""Values that are changed for a time and put back, whichever of several threads is done first.

Two threads that each save what they find and put it back at the end ruin it: the second saves what the first has set.
Here the one that leaves first hands what it found to the one that came after it.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_guard = threading.RLock()  # a finalizer may come by while it is held
_open: list[Changed[Any]] = []
_draws = threading.RLock()


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
        self._what, self._owners, self._read, self._write = what, owners, read, write
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


def _key(owner: object) -> object:
    return owner if isinstance(owner, str) else id(owner)


@contextlib.contextmanager
def attribute_put_back(owners: Iterable[T], name: str) -> Iterator[None]:
    """Let a block change an attribute of some objects.

    Args:
        owners: The objects.
        name: The attribute.
    """
    changed = Changed(
        name, owners, lambda owner: getattr(owner, name), lambda owner, value: setattr(owner, name, value)
    )
    try:
        try:
            changed.begin()
            yield
        finally:
            changed.end()
    finally:
        changed.end()


@contextlib.contextmanager
def random_state_put_back() -> Iterator[None]:
    """Let a block seed the generators of Python and of torch, on the CPU and on all CUDA devices, and draw."""
    changed = _random_states(range(torch.cuda.device_count()), "python")
    try:
        try:
            changed.begin()
            yield
        finally:
            changed.end()
    finally:
        changed.end()


def with_own_draws(work: Callable[[], R], devices: Iterable[torch.device] = ()) -> R:
    """Do work that seeds torch's generators and draws from them; they are as they were afterwards.

    torch has one random state for all threads: such pieces of work take turns in a process.

    Args:
        work: The work.
        devices: CUDA devices whose generators it uses beside that of the CPU.

    Returns:
        What the work returns.
    """
    changed = _random_states(device.index or 0 for device in devices)
    with _draws:
        try:
            try:
                changed.begin()
                return work()
            finally:
                changed.end()
        finally:
            changed.end()


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

    return Changed("random state", [*others, "cpu", *(f"cuda:{index}" for index in cuda)], read, write)
