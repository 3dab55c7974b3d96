"""Means over an epoch reach ``it_log``: the same names and values under core's loops and under Lightning, once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interpretune as it
from tests.sessions import BATCH_SIZE, N_ROWS, make_session

RECORDER = """
logged = []

@it.hookimpl
def it_log(self, metrics, options):
    self.logged.append((dict(options), {name: float(value) for name, value in metrics.items()}))
"""
MEAN = {"epoch_mean": True}


class LogsIndices(it.ITModule):
    """Logs what can be averaged by hand."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log("index", float(batch_idx))
        self.log("mean_index", float(batch_idx + 10 * self.current_epoch), on_epoch=True, on_step=True)
        return next(item for item in self.parameters() if item.requires_grad).sum() * 0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_index", float(batch_idx), batch_size=len(batch["labels"]))
        self.log("val_last", float(batch_idx), on_epoch=False, on_step=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_index", torch.tensor(float(batch_idx)), batch_size=len(batch["labels"]))

    def on_train_epoch_start(self) -> None:
        self.log("start", 3.0 + self.current_epoch)

    def on_train_epoch_end(self) -> None:
        self.log("end", 5.0 + self.current_epoch)

    def on_validation_epoch_end(self) -> None:
        self.log("val_end", 7.0)


@pytest.fixture(params=["core", "lightning"])
def framework(request: pytest.FixtureRequest, quiet: None) -> str:
    return request.param


@pytest.fixture
def session(framework, adapter_of, tmp_path):
    adapter_of("recorder", body=RECORDER)
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}}
    return make_session(
        tmp_path, adapters=(framework, "recorder"), module_cls=LogsIndices, optimizer_init=sgd, freeze=False
    )


def means_of(session: it.ITSession) -> list[dict[str, Any]]:
    logged = session.context.adapters[-1].plugin.logged
    return [metrics for options, metrics in logged if options == MEAN]


@pytest.fixture
def val_index():
    sizes = [BATCH_SIZE, BATCH_SIZE, N_ROWS - 2 * BATCH_SIZE]
    return pytest.approx(sum(index * size for index, size in enumerate(sizes)) / N_ROWS)


def test_an_evaluation_reports_its_means_once(session, val_index):
    result = it.test(**session, loop_cfg=it.LoopConfig(progress=False))
    assert means_of(session) == [{"test_index": val_index}] == [result.metrics]
    logged = session.context.adapters[-1].plugin.logged
    steps = [metrics for options, metrics in logged if options != MEAN]
    assert steps == [{"test_index": float(index)} for index in range(3)]
    assert session.module.logged_metrics["test_index"] == 2.0


def test_each_epoch_of_a_training_reports_its_means_once(session, val_index):
    n = len(session.datamodule.train_dataloader())
    cfg = it.LoopConfig(max_epochs=2, progress=False)
    it.fit(**session, loop_cfg=cfg)
    expected = []
    for epoch in range(2):
        expected.append({"val_index": val_index, "val_end": 7.0})
        mean = (n - 1) / 2 + 10 * epoch
        expected.append({"mean_index": pytest.approx(mean), "start": 3.0 + epoch, "end": 5.0 + epoch})
    assert means_of(session) == expected


def test_an_epoch_that_ends_in_its_middle_has_no_means(session):
    it.fit(**session, loop_cfg=it.LoopConfig(max_epochs=-1, max_steps=2, progress=False))
    assert not [means for means in means_of(session) if "mean_index" in means]
