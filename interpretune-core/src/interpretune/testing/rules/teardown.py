"""Rules of what is released when a session fails."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator

from interpretune.session.session import ITSession, it_init, it_session_end
from interpretune.testing.global_state import GlobalState
from interpretune.testing.model_hooks import hooks_on, left_behind
from interpretune.testing.recording import hook_calls
from interpretune.testing.rule import RuleSkipped, expect, rule
from interpretune.testing.rules.life_cycle import END, PHASES, error_of, session_failing
from interpretune.testing.user_classes import UserModule
from interpretune.testing.workbench import Bench
from interpretune.training.config import LoopConfig
from interpretune.training.start import test

MOMENT = 1.0
"""Seconds that a thread may take to end."""


@rule(stack=True, after=["errors-arrive", "nothing-global-changes"])
def released_after_a_failure(bench: Bench) -> None:
    """After a failure in any phase or in a loop the session ends, and nothing that it held is left."""
    bench.session  # noqa: B018 - skips where no session can be made
    for kind, call in PHASES:
        with _expect_release(f"after a failure in {kind.__name__}.{call}") as watched:
            session = session_failing(bench, kind, call)
            watched(session)
            if error_of(functools.partial(it_init, **session)) is None:
                raise RuleSkipped("a failure does not arrive: see the rule errors-arrive")
    with _expect_release("after a failure in a step of the loop `test`, at the end") as watched:
        session = session_failing(bench, UserModule, "test_step")
        watched(session)
        it_init(**session)
        if error_of(functools.partial(test, **session, loop_cfg=LoopConfig(progress=False))) is None:
            raise RuleSkipped("a failure does not arrive: see the rule errors-arrive")
        it_session_end(**session)


@contextlib.contextmanager
def _expect_release(phase: str) -> Iterator[Callable[[ITSession], None]]:
    """Expect that a session, which is told as soon as it is made, is ended once and holds nothing at the end."""
    state, threads = GlobalState(), set(threading.enumerate())
    told: list[tuple[ITSession, Counter[str]]] = []
    with hook_calls() as calls:
        yield lambda session: told.append((session, hooks_on(session.module)))
    session, before = told[0]
    module = session.module
    expect(
        calls.count(END) == 1,
        f"{phase} it_end_session was called {calls.count(END)} times",
        "once: the session is ended",
    )
    alive = module.initialised or module._it_state.backend is not None
    expect(not alive, f"{phase} the session counts as alive", "core's part of it_end_session")
    left = left_behind(before, module)
    expect(not left, f"{phase} there are still {left}", "no hooks of torch on the module")
    new = [thread.name for thread in threading.enumerate() if thread not in threads and _stays(thread)]
    expect(not new, f"{phase} the threads {', '.join(new)} still run", "none")
    changes = state.changes()
    expect(not changes, f"{phase} there is another {'; '.join(changes)}", "what was there before")


def _stays(thread: threading.Thread) -> bool:
    """Whether a thread goes on; workers of pools take a moment to end, monitors of progress bars never do."""
    if "tqdm" in type(thread).__module__ or "tqdm" in thread.name.lower():
        return False
    thread.join(MOMENT)
    return thread.is_alive()
