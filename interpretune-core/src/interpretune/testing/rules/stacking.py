"""Rules of sharing a stack."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, permutations
from typing import Any
from unittest import mock

from interpretune.config.datamodule import ITDataModuleConfig
from interpretune.config.module import ITConfig
from interpretune.errors import InterpretuneError, StackError
from interpretune.markers import PROJECT_NAME
from interpretune.plugins.declaration import Level
from interpretune.plugins.discovery import InstalledAdapter, installed_adapters
from interpretune.plugins.stack import CORE, SINGLE_OWNER_HOOKS, ExecutionContext, build_context
from interpretune.session.composition import compose_datamodule_cfg, compose_module_cfg
from interpretune.session.session import compose_class, it_session_end
from interpretune.testing.rule import RuleBroken, expect, expect_no_error, rule
from interpretune.testing.user_classes import UserDataModule, UserModule
from interpretune.testing.workbench import Bench

MOST_TOGETHER = 3
"""Adapters in the largest stacks that are tried, core not counted."""

Installed = Mapping[str, InstalledAdapter]
Stack = dict[str, Any]
"""Adapter objects by name."""


@rule(stack=True)
def stacks_in_every_order(bench: Bench) -> None:
    """With every other installed adapter it gives one stack for all orders, or is refused in words."""
    bench.context  # noqa: B018 - skips what does not stack at all
    mine = [name for name in bench.stack if name != CORE]
    with _metadata_read_once() as installed:
        others = [name for name in installed if name not in (*mine, CORE) and _stacks((name,))]
        for size in range(MOST_TOGETHER - len(mine) + 1):
            for guests in combinations(others, size):
                _check(mine, guests, installed)


@contextlib.contextmanager
def _metadata_read_once() -> Iterator[Installed]:
    """What is installed; hundreds of stacks are built, and nothing is installed or removed between them."""
    installed = installed_adapters()
    with mock.patch("interpretune.plugins.stack.installed_adapters", return_value=installed):
        yield installed


def _check(mine: Sequence[str], guests: Sequence[str], installed: Installed) -> None:
    names = (*mine, *guests)
    try:
        named = (CORE, *names) if len(names) < MOST_TOGETHER else names  # core is always there
        contexts = [build_context(order) for order in permutations(named)]
    except StackError as error:
        if len(guests) > 1 and not _stacks(guests):
            return  # they are refused without the one that is checked
        _check_refusal(names, str(error), installed)
        return
    about = len({_description(context) for context in contexts})
    expect(about == 1, f"the orders of {', '.join(names)} give {about} different stacks", "one for all orders")
    _check_that_they_may(names, contexts[0])
    _compose(names, contexts[0])


def _check_refusal(names: Sequence[str], message: str, installed: Installed) -> None:
    """A refusal must have a reason that is declared, and name those whom it concerns."""
    stack = _wanted_by(names, installed)
    named = [name for name in stack if f"'{name}'" in message or f" {name} " in message]
    owners = [name for name, plugin in stack.items() if name != CORE and _loads_model(plugin)]
    defaults = {plugin.declaration.default_model for plugin in stack.values()} - {None, ""}
    reason = _declared_conflict(stack) or len(owners) > 1 or len(defaults) > 1
    expect(
        reason and len(named) > 1,
        f"{', '.join(names)} do not stack: {message}",
        "a stack; or a refusal that names two adapters, for a conflict that one of them declares or because two load "
        "the model or want other ones by default",
    )


def _wanted_by(names: Iterable[str], installed: Installed) -> Stack:
    """The named adapters with all that they require, and the model adapters that they would have by default."""
    stack: Stack = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        if name not in stack and name in installed:
            stack[name] = installed[name].load()
            waiting += stack[name].declaration.requires
        if not waiting and not any(plugin.declaration.level is Level.model for plugin in stack.values()):
            waiting += {plugin.declaration.default_model for plugin in stack.values()} & (installed.keys() - stack)
    return stack


def _check_that_they_may(names: Sequence[str], context: ExecutionContext) -> None:
    stack = {adapter.name: adapter.plugin for adapter in context.adapters}
    conflict = _declared_conflict(stack)
    expect(not conflict, f"{', '.join(context.names)} stack", f"a refusal: {conflict}")
    owners = [name for name, plugin in stack.items() if name != CORE and _loads_model(plugin)]
    expect(len(owners) < 2, f"{', '.join(names)} stack and {' and '.join(owners)} load the model", "a refusal")


def _compose(names: Sequence[str], context: ExecutionContext) -> None:
    try:
        compose_class(UserModule, "module", context)
        compose_class(UserDataModule, "datamodule", context)
        compose_module_cfg(ITConfig(), context)
        compose_datamodule_cfg(ITDataModuleConfig(), context, None)
    except (InterpretuneError, TypeError) as error:
        raise RuleBroken(
            f"the classes of {', '.join(names)} cannot be composed: {type(error).__name__}: {error}",
            "classes whose bases can stand behind each other, or a conflict that is declared",
        ) from error


def _description(context: ExecutionContext) -> tuple[object, ...]:
    kinds = ("module", "datamodule", "module_entry", "datamodule_entry", "module_cfg", "datamodule_cfg")
    return (context.names, tuple(context.answers()), *(tuple(context.bases(kind)) for kind in kinds))


def _stacks(names: Sequence[str]) -> bool:
    """Whether others are sound; what is broken in them is no fault of the adapter that is checked."""
    try:
        build_context(names)
    except (Exception, SystemExit):  # noqa: BLE001 - a stranger's module may raise anything, or exit
        return False
    return True


def _declared_conflict(stack: Stack) -> str:
    for name, plugin in stack.items():
        enemies = set(plugin.declaration.conflicts) & set(stack)
        if enemies:
            return f"{name} declares a conflict with {', '.join(sorted(enemies))}"
    return ""


def _loads_model(plugin: Any) -> bool:
    implementations = (getattr(plugin, hook, None) for hook in SINGLE_OWNER_HOOKS)
    markers = (getattr(item, f"{PROJECT_NAME}_impl", {}) for item in implementations if item is not None)
    return any(not (marker.get("wrapper") or marker.get("hookwrapper")) for marker in markers)


@rule(stack=True)
def session_runs(bench: Bench) -> None:
    """A session can be made, brought to life and ended, twice in one process."""
    bench.context  # noqa: B018 - skips what does not stack
    for attempt in ("first", "second"):
        with expect_no_error(f"the {attempt} session fails", "a session with a tiny model"):
            session = bench.new_session()
        keys = set(session)
        expect("datamodule" in keys and len(keys) == 2, f"the session maps {sorted(keys)}", "datamodule and the module")
        expect(session.module.initialised, "after it_init the session is not alive", "a session that is")
        it_session_end(**session)
        expect(not session.module.initialised, "after it_session_end it is alive", "a session that has ended")
