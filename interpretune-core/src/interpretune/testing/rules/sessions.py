"""Rules of sessions: the order of their life, errors of users, what stays apart, what is released, what pickles."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from interpretune.activations.inputs import ModelInputs
from interpretune.session.datamodule import ITDataModule
from interpretune.session.module import ITModule
from interpretune.session.session import ITSession, it_init, it_session_end
from interpretune.testing.comparing import logits_in, same
from interpretune.testing.global_state import GlobalState, hooks_on, left_behind
from interpretune.testing.recording import hook_calls
from interpretune.testing.rule import RuleSkipped, expect, expect_no_error, rule
from interpretune.testing.user_classes import UserDataModule, UserModule, calls_of, error_raised_by, failing
from interpretune.testing.workbench import Bench
from interpretune.training.config import LoopConfig
from interpretune.training.loops import test

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


_OWN = (ITModule, ITDataModule)
"""Classes that derive from these are watched; those of torch are not the user's."""


@rule(stack=True, after=["session-runs"])
def users_classes_unmodified(bench: Bench) -> None:
    """The user's classes and configurations are as they were."""
    bench.session  # noqa: B018 - skips where no session can be made
    module_cls, datamodule_cls = type("Mine", (UserModule,), {}), type("MyData", (UserDataModule,), {})
    classes = {cls for own in (module_cls, datamodule_cls) for cls in own.__mro__ if issubclass(cls, _OWN)}
    before = {cls: (dict(vars(cls)), cls.__bases__) for cls in classes}
    cfg = bench.session_cfg(module_cls, datamodule_cls)
    configured = {name: _values(getattr(cfg, name)) for name in ("shared_cfg", "datamodule_cfg", "module_cfg")}
    session = ITSession(cfg)
    it_init(**session)
    it_session_end(**session)
    for cls, (members, bases) in before.items():
        changed = sorted(name for name in {*members, *vars(cls)} if members.get(name) is not vars(cls).get(name))
        changed = [name for name in changed if not name.startswith("_abc_")]
        expect(
            not changed and cls.__bases__ == bases,
            f"the class {cls.__qualname__} has other {', '.join(changed) or 'bases'}",
            "a class that is as the user wrote it: derive from it, do not change it",
        )
    for name, values in configured.items():
        now = _values(getattr(cfg, name))
        changed = sorted(key for key in {*values, *now} if not _equal(values.get(key), now.get(key)))
        expect(not changed, f"the user's {name} has other values of {', '.join(changed)}", "the values that were set")


def _values(config: Any) -> dict[str, Any]:
    values = {item.name: getattr(config, item.name) for item in fields(config)}
    values |= getattr(config, "awaiting_composition", {})
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    """A copy of what can be changed in place; anything else stands for itself."""
    plain = (Mapping, list, str, int, float, tuple)
    return copy.deepcopy(value) if isinstance(value, plain) or is_dataclass(value) else value


def _equal(before: Any, now: Any) -> bool:
    return before is now or repr(before) == repr(now)


@rule(stack=True, after=["session-runs"])
@torch.no_grad()
def deterministic(bench: Bench) -> None:
    """In evaluation mode the same batch gives the same numbers twice: dropout is off, nothing is drawn."""
    module, batch = bench.module, bench.even_batch()
    expect(not module.model.training, "the model is in train mode in a session that trains nothing", "evaluation mode")
    inputs = ModelInputs.from_batch(batch)
    runs: Mapping[str, Callable[[], Tensor]] = {
        "logits of the forward": lambda: logits_in(module(**batch), "the forward"),
        "logits of the backend": lambda: module.backend.run(inputs),
    }
    for what, run in runs.items():
        first, second = run(), run()
        worst = float((first - second).abs().max())
        expect(
            worst <= 1e-6 * float(first.abs().max()), f"{what} differ by {worst:.3g} between two runs", "the same twice"
        )


@rule(stack=True, after=["deterministic"])
def nothing_global_changes(bench: Bench) -> None:
    """A session leaves settings, classes, hooks on all modules, loggers, environment and random states alone."""
    bench.session  # noqa: B018 - skips where no session can be made
    before = GlobalState()
    session = bench.new_session(own_cache=True)
    _expect_unchanged(before, "making a session and bringing it to life")
    module = session.module
    batch = bench.even_batch()
    with torch.no_grad():
        module(**batch)
    _expect_unchanged(before, "a forward")
    module.it_generate(batch, max_new_tokens=2, do_sample=False)
    _expect_unchanged(before, "a greedy generation")
    module.backend.run(ModelInputs.from_batch(batch))
    _expect_unchanged(before, "a run of the backend")
    test(**session, loop_cfg=LoopConfig(limit_test_batches=1, progress=False))
    _expect_unchanged(before, "the loop `test`")
    it_session_end(**session)
    _expect_unchanged(before, "the end of the session")


def _expect_unchanged(before: GlobalState, after: str) -> None:
    changes = before.changes()
    expect(not changes, f"after {after} there is another {'; '.join(changes)}", "what was there before")


@rule(stack=True, after=["deterministic"])
@torch.no_grad()
def sessions_stay_apart(bench: Bench) -> None:
    """A second session in the process, with other weights, changes nothing of the first."""
    first, batch = bench.module, bench.even_batch()
    inputs = ModelInputs.from_batch(batch)
    before = logits_in(first(**batch), "the forward").clone(), first.backend.run(inputs).clone()
    second = bench.new_session()
    for parameter in second.module.model.parameters():
        parameter.mul_(1.5)
    other = logits_in(second.module(**batch), "the forward")
    expect(
        float((other - before[0]).abs().max()) > 1e-3 * float(before[0].abs().max()),
        "a session whose weights were multiplied by 1.5 gives the logits of another session",
        "its own: keep nothing of a session on the adapter object",
    )
    same(logits_in(first(**batch), "the forward"), before[0], "logits of the first session, beside a second")
    same(first.backend.run(inputs), before[1], "logits of the first session's backend, beside a second")
    it_session_end(**second)
    same(logits_in(first(**batch), "the forward"), before[0], "logits of the first session, after the end of a second")
    same(first.backend.run(inputs), before[1], "logits of the first session's backend, after the end of a second")


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


_BY_IDENTITY: Any = object.__eq__


@rule(stack=True)
def configurations_pickle(bench: Bench) -> None:
    """Configurations, the user's and the composed ones, survive pickling, and so do batches and what makes them."""
    session = bench.session
    cfg = session.session_cfg
    parts = {
        "the session's configuration": cfg,
        "the composed configuration of the module": session.module.it_cfg,
        "the composed configuration of the data module": session.datamodule.itdm_cfg,
        "the data set": session.datamodule.dataset,
        "the collator": session.datamodule.data_collator,
    }
    for name, part in parts.items():
        wanted = "one that can: workers of a distributed run get it by pickling"
        with expect_no_error(f"{name} cannot be pickled", wanted):  # anything in it may refuse in its own way
            copy = pickle.loads(pickle.dumps(part))  # noqa: S301 - its own bytes
        _check_fields(name, part, copy)


def _check_fields(name: str, part: Any, copy: Any) -> None:
    expect(type(copy).__name__ == type(part).__name__, f"{name} comes back as {type(copy).__name__}", "its own class")
    if is_dataclass(part):
        before, now = vars(part), vars(copy)
        other = sorted(key for key in {*before, *now} if not _kept(before.get(key), now.get(key)))
        expect(not other, f"{name} comes back with other values of {', '.join(other)}", "the values that it had")


def _kept(before: Any, now: Any) -> bool:
    """Whether a value came back; of objects that do not say when they are equal only the class can be compared."""
    if before is now:
        return True
    if type(before).__qualname__ != type(now).__qualname__:  # composed classes are made again
        return False
    if isinstance(before, Tensor):
        return torch.equal(before, now)
    if isinstance(before, Mapping):
        return before.keys() == now.keys() and all(_kept(value, now[key]) for key, value in before.items())
    if isinstance(before, (list, tuple)):
        return len(before) == len(now) and all(map(_kept, before, now))
    if is_dataclass(before) and not isinstance(before, type):
        return _kept(vars(before), vars(now))
    return type(before).__eq__ is _BY_IDENTITY or bool(before == now)


@rule(stack=True, after=["sessions-stay-apart"])
@torch.no_grad()
def state_loads(bench: Bench) -> None:
    """The module's state goes through a file into another session, strictly, and gives the same logits."""
    module, batch = bench.module, bench.even_batch()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = bench.new_session().module
    for parameter in other.parameters():
        if parameter.is_floating_point():
            parameter.mul_(1.5)
    problems = other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    expect(not any(problems), f"loading a state gave {problems}", "nothing missing, nothing left over")
    wanted = logits_in(module(**batch), "the forward")
    same(logits_in(other(**batch), "the forward"), wanted, "logits of a session that loaded the state of another")
