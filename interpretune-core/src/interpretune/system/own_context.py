"""What is put on a shared model acts only for the thread and context that put it there.

A model is shared by threads, and by asyncio's tasks of one thread. Hooks and replaced methods stand on it for all of
them; each asks here whether the forward that comes by belongs to whom it serves.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


class OwnContext:
    """A block of code in one thread and one context (of ``contextvars``), and what is called out of it.

    Threads begin with an empty context, and each task of asyncio has its own. A context that is copied within the block
    (``contextvars.copy_context``, ``asyncio.to_thread``, a task that is made there) belongs to it.
    """

    def __enter__(self) -> OwnContext:
        _entered.set((*_entered.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        _entered.set(tuple(item for item in _entered.get() if item is not self))  # blocks may end in any order

    def is_here(self) -> bool:
        """Whether the caller is in the block."""
        return self in _entered.get()

    def only_here(self, function: Callable[[T], T]) -> Callable[[T], T]:
        """The function, which hands back what it is given, the same object, to every caller outside of the block."""

        def apply(value: T) -> T:
            return function(value) if self in _entered.get() else value

        return apply


_entered: ContextVar[tuple[OwnContext, ...]] = ContextVar("interpretune_own_contexts", default=())
