"""Rules of what processes hand to each other: configurations and states."""

from __future__ import annotations

import io
import pickle
from dataclasses import fields
from typing import Any

import torch

from interpretune.testing.bench import Bench
from interpretune.testing.comparing import logits_in, same
from interpretune.testing.rule import RuleBroken, expect, rule


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
    if hasattr(part, "__dataclass_fields__"):
        lost = [item.name for item in fields(part) if not hasattr(copy, item.name)]
        expect(not lost, f"{name} comes back without {', '.join(lost)}", "all of its fields")


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
