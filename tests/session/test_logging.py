"""What adapters see of logged metrics, and that they change nothing of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import interpretune as it
from tests.sessions import BATCH_SIZE, N_ROWS, make_session

MEDDLER = """
seen = []

@it.hookimpl(wrapper=True)
def it_log(self, metrics, options):
    for value in metrics.values():
        if not isinstance(value, float):
            value.mul_(0)
    for mapping in (metrics, options):
        try:
            mapping["loss"] = 1.0
        except TypeError as error:
            self.seen.append(str(error))
    return (yield)
"""


class LogsTensors(it.ITModule):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("index", torch.tensor(batch_idx + 1.0))


def test_an_adapter_cannot_change_what_is_logged(adapter_of: Callable[..., None], tmp_path: Path) -> None:
    adapter_of("meddler", body=MEDDLER)
    session = make_session(tmp_path, adapters=("meddler",), module_cls=LogsTensors)
    loss = torch.tensor(2.0)
    options = {"batch_size": 3}
    session.module.log_dict({"loss": loss}, **options)
    assert (float(loss), options) == (2.0, {"batch_size": 3})
    assert session.module.logged_metrics == {"loss": 2.0}
    assert len(session.context.adapters[-1].plugin.seen) == 2
    rest = N_ROWS - 2 * BATCH_SIZE
    mean = (BATCH_SIZE * 1 + BATCH_SIZE * 2 + rest * 3) / N_ROWS
    session.context.adapters[-1].plugin.seen.clear()
    assert it.test(**session, loop_cfg=it.LoopConfig(progress=False)).metrics == {"index": pytest.approx(mean)}


def test_means_are_told_from_steps(adapter_of: Callable[..., None], tmp_path: Path) -> None:
    body = "seen = []\n\n@it.hookimpl\ndef it_log(self, metrics, options):\n"
    body += "    self.seen.append((dict(options), dict(metrics)))"
    adapter_of("listener", body=body)
    session = make_session(tmp_path, adapters=("listener",), module_cls=LogsTensors)
    metrics = it.test(**session, loop_cfg=it.LoopConfig(progress=False)).metrics
    seen = session.context.adapters[-1].plugin.seen
    assert seen == [*[({}, {"index": i}) for i in (1.0, 2.0, 3.0)], ({"epoch_mean": True}, metrics)]
    assert session.module.logged_metrics == {"index": 3.0}
    with pytest.raises(it.ConfigurationError, match="epoch_mean marks what loops report"):
        session.module.log("index", 1.0, epoch_mean=True)


def test_what_bitsandbytes_lacks_is_not_printed_and_all_else_is():
    """Others import it without its being used, and on some processors it then asks for a package."""
    seen: list[str] = []

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    logger, handler = logging.getLogger("bitsandbytes.backends.cpu.ops"), Noting()
    logger.addHandler(handler)
    try:
        logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "no kernels")
        logger.warning("Failed to load anything else")
    finally:
        logger.removeHandler(handler)
    assert seen == ["Failed to load anything else"]
