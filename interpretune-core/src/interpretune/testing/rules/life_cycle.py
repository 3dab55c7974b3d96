"""Rules of the life cycle: order, errors of the user's code, and what is released after them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from interpretune.session.session import ITSession, it_init, it_session_end
from interpretune.testing.recording import hook_calls
from interpretune.testing.rule import expect, rule
from interpretune.testing.user_classes import UserDataModule, UserModule, calls_of, error_raised_by, failing
from interpretune.testing.workbench import Bench
from interpretune.training.config import LoopConfig
from interpretune.training.start import test

LIFE = (
    "it_load_model",
    "it_load_latent_models",
    "it_prepare_data",
    "it_setup_datamodule",
    "it_setup_module",
    "it_configure_optimizers",
    "it_end_session",
)
"""The hooks of a session's life, in order; each is called once."""

PHASES = (
    (UserDataModule, "prepare_data"),
    (UserDataModule, "setup"),
    (UserModule, "setup"),
    (UserModule, "configure_optimizers"),
)
"""What a user's class does in each phase of ``it_init``."""

END = "it_end_session"
"""The hook that ends a session."""


@rule(stack=True, after=["session-runs"])
def life_cycle_in_order(bench: Bench) -> None:
    """Each hook of the life cycle is called once and in order, and the user's methods with them."""
    bench.session  # noqa: B018 - skips where no session can be made
    with hook_calls() as calls:
        session = bench.new_session(own_cache=True)
        it_session_end(**session)
    lived = [name for name in calls if name in LIFE]
    expect(lived == list(LIFE), f"hooks were called in the order {', '.join(lived)}", ", ".join(LIFE))
    of_module, of_datamodule = (calls_of(part) for part in (session.module, session.datamodule))
    expect(
        of_datamodule == ["prepare_data", "setup"],
        f"the user's data module saw {of_datamodule}",
        "prepare_data and setup, once each",
    )
    expect(
        of_module == ["setup", "configure_optimizers"],
        f"the user's module saw {of_module}",
        "setup and configure_optimizers, once each",
    )


@rule(stack=True, after=["session-runs"])
def errors_arrive(bench: Bench) -> None:
    """An error of the user's code, from any phase or step, reaches the caller: the very object that was raised."""
    bench.session  # noqa: B018 - skips where no session can be made
    for kind, call in PHASES:
        session = session_failing(bench, kind, call)
        user = session.module if kind is UserModule else session.datamodule
        _check_error(error_of(functools.partial(it_init, **session)), user, f"{kind.__name__}.{call}")
    session = bench.new_session(module_cls=failing(UserModule, "test_step"))
    batch = next(iter(session.datamodule.test_dataloader()))
    step = functools.partial(session.module.run_step, "test_step", session.module.batch_to_device(batch), 0)
    _check_error(error_of(step), session.module, "UserModule.test_step")
    loop = functools.partial(test, **session, loop_cfg=LoopConfig(progress=False))
    _check_error(error_of(loop), session.module, "UserModule.test_step in the loop `test`")
    it_session_end(**session)


def session_failing(bench: Bench, kind: type, call: str) -> ITSession:
    """A session, not yet alive, of which one call of a user's class will fail."""
    if kind is UserModule:
        return bench.new_session(init=False, module_cls=failing(kind, call))
    return bench.new_session(init=False, datamodule_cls=failing(kind, call))


def error_of(call: Callable[[], Any]) -> BaseException | None:
    """What a call raises; None: nothing."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - whatever arrives is looked at
        return error
    return None


def _check_error(found: BaseException | None, user: object, where: str) -> None:
    raised = error_raised_by(user)
    expected = f"the very error that was raised, {raised!r}"
    expect(raised is not None, f"{where} was not called", "a call, which fails")
    expect(found is not None, f"an error in {where} did not reach the caller", expected)
    chain = " from ".join(type(item).__name__ for item in _chain(found))
    expect(found is raised, f"an error in {where} reached the caller as another object, {chain}: {found}", expected)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    item = error
    while item is not None:
        yield item
        item = item.__cause__ or item.__context__
