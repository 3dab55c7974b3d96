"""Rules of what is released when a session fails."""

from __future__ import annotations

import functools
import threading

from interpretune.session import it_init
from interpretune.testing.bench import Bench
from interpretune.testing.global_state import GlobalState
from interpretune.testing.life_cycle_rules import END, PHASES, error_of, session_failing
from interpretune.testing.model_hooks import hooks_on, left_behind
from interpretune.testing.recording import hook_calls
from interpretune.testing.rule import RuleSkipped, expect, rule


@rule(stack=True, after=["errors-arrive", "nothing-global-changes"])
def released_after_a_failure(bench: Bench) -> None:
    """After a failure in any phase the session is ended, and nothing that it held is left."""
    bench.session  # noqa: B018 - skips where no session can be made
    for kind, call in PHASES:
        phase = f"after a failure in {kind.__name__}.{call}"
        state, threads = GlobalState(), set(threading.enumerate())
        with hook_calls() as calls:
            session = session_failing(bench, kind, call)
            before = hooks_on(session.module)
            if error_of(functools.partial(it_init, **session)) is None:
                raise RuleSkipped("a failure does not arrive: see the rule errors-arrive")
        expect(
            calls.count(END) == 1,
            f"{phase} it_end_session was called {calls.count(END)} times",
            "once: the session is ended",
        )
        module = session.module
        alive = module._it_state.initialised or module._it_state.backend is not None
        expect(not alive, f"{phase} the session counts as alive", "core's part of it_end_session")
        left = left_behind(before, module)
        expect(not left, f"{phase} there are still {left}", "no hooks of torch on the module")
        new = [thread.name for thread in threading.enumerate() if thread not in threads and _is_ours(thread)]
        expect(not new, f"{phase} the threads {', '.join(new)} still run", "none")
        changes = state.changes()
        expect(not changes, f"{phase} there is another {'; '.join(changes)}", "what was there before")


def _is_ours(thread: threading.Thread) -> bool:
    """Monitors of progress bars live as long as the process."""
    return thread.is_alive() and "tqdm" not in type(thread).__module__ and "tqdm" not in thread.name.lower()
