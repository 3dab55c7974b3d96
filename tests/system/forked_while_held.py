"""A process is forked while another of its threads holds the locks of the library; the child uses all of them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from interpretune.activations import replaced_method
from interpretune.system.model_lock import model_lock
from interpretune.system.put_back import Changed, attribute_put_back, random_state_put_back, with_own_draws

TOO_LONG = 60
go_on = threading.Event()


class Waits(nn.Module):
    """A module whose method is looked up for as long as ``go_on`` is not set."""

    class _Method:
        def __get__(self, instance: Any, owner: Any = None) -> Any:
            return self if instance is None else hold()

    method = _Method()


def hold(*_: Any) -> Any:
    held.set()
    go_on.wait(TOO_LONG)
    return print


def method_replaced() -> None:
    with replaced_method(Waits(), "method", print):
        pass


def model_held() -> None:
    with model_lock(linear):
        hold()


def use_all() -> None:
    for seeded in (random_state_put_back, lambda: attribute_put_back([linear], "training")):
        with seeded(), model_lock(linear), replaced_method(linear, "forward", torch.sin):
            with_own_draws(lambda: torch.rand(1))


def ends(work: Callable[[], Any]) -> bool:
    """Whether work ends in a forked process."""
    child = os.fork()
    if not child:
        signal.alarm(TOO_LONG // 3)
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


linear = nn.Linear(2, 2)
ways: dict[str, Callable[[], Any]] = {
    "draws": lambda: with_own_draws(hold),
    "values": Changed("a value", ["of nobody"], hold, hold).begin,
    "methods": method_replaced,
    "a model": model_held,
}
failed = []
for name, way in ways.items():
    held, go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=way, daemon=True)
    thread.start()
    assert held.wait(TOO_LONG)
    if not ends(use_all):
        failed.append(name)
    go_on.set()
    thread.join(TOO_LONG)
if not with_own_draws(lambda: ends(use_all)):
    failed.append("draws of the thread that forks")
sys.exit(f"The child hangs: {failed}" if failed else 0)
