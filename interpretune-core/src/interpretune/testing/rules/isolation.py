"""Rules of leaving alone what belongs to others: the user's classes, the process, other sessions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from interpretune.activations.inputs import ModelInputs
from interpretune.session.datamodule import ITDataModule
from interpretune.session.module import ITModule
from interpretune.session.session import ITSession, it_init, it_session_end
from interpretune.testing.comparing import logits_in, same
from interpretune.testing.global_state import GlobalState
from interpretune.testing.rule import expect, rule
from interpretune.testing.user_classes import UserDataModule, UserModule
from interpretune.testing.workbench import Bench
from interpretune.training.config import LoopConfig
from interpretune.training.start import test

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
