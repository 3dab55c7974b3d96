"""Rules of what processes hand to each other: configurations and states."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor

from interpretune.testing.comparing import logits_in, same
from interpretune.testing.rule import RuleBroken, expect, rule
from interpretune.testing.workbench import Bench

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
        try:
            copy = pickle.loads(pickle.dumps(part))  # noqa: S301 - its own bytes
        except Exception as error:  # anything in it may refuse in its own way
            raise RuleBroken(
                f"{name} cannot be pickled: {type(error).__name__}: {error}",
                "one that can: workers of a distributed run get it by pickling",
            ) from error
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
