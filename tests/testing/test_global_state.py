"""What a process shares is seen to change, and put back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.modules import module

from interpretune.testing.global_state import GlobalState

CHANGES: dict[str, Callable[[], object]] = {
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "precision of float32": lambda: torch.set_float32_matmul_precision("medium"),
    "default device": lambda: torch.set_default_device("meta"),
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "hooks on all modules of torch": lambda: module.register_module_forward_hook(lambda *given: None),
    "attributes of the class torch.nn.modules.linear.Linear: forward": lambda: setattr(
        nn.Linear, "forward", lambda self, x: x
    ),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_seen_and_put_back(what):
    before = GlobalState()
    try:
        CHANGES[what]()
        assert any(what in change for change in before.changes())
        assert any(what in change for change in before.changes_of_settings())
    finally:
        before.restore()
    assert before.changes() == []


def test_a_default_device_that_was_set_before_is_set_again():
    outer = GlobalState()
    try:
        torch.set_default_device("meta")
        inner = GlobalState()
        torch.set_default_device("cpu")
        inner.restore()
        assert torch.get_default_device() == torch.device("meta")
    finally:
        outer.restore()
    assert torch.get_default_device() == torch.device("cpu")
