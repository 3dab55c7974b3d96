"""Core's training and evaluation loops against loops written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import GPT2Config

import interpretune as it
from tests.sessions import make_session
from tests.tiny import CONTEXT_LENGTH, VOCABULARY

ADAM: dict[str, Any] = {"optimizer_init": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}}
ANSWERS = [VOCABULARY["Yes"], VOCABULARY["No"]]
WITH_DROPOUT = GPT2Config(
    vocab_size=len(VOCABULARY), n_positions=CONTEXT_LENGTH, n_embd=32, n_layer=2, n_head=4, n_inner=64
)
"""Transformers' default is a dropout of 0.1 in three places."""
Make = Callable[..., it.ITSession]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(**settings: Any) -> it.ITSession:
        options = {"module_cls": Recorder, "hf_config": WITH_DROPOUT, **ADAM, **settings}
        session = make_session(tmp_path, init=False, **options)
        session.datamodule.itdm_cfg.train_batch_size = 5  # 24 rows: five batches, the last of four
        return session

    return make


class Recorder(it.ClassificationModule):
    """Keeps the loss and the learning rate of every batch."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.__dict__.setdefault("losses", []).append(loss.item())
        return loss


def quiet(**options: Any) -> it.LoopConfig:
    return it.LoopConfig(progress=False, **options)


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def by_hand(
    session: it.ITSession,
    *,
    epochs: int,
    accumulate: int = 1,
    scheduler: Callable[[Any], Any] | None = None,
    by_step: bool = False,
    clip: Callable[[Any], Any] | None = None,
    max_steps: int = 10**6,
    limit: int = 10**6,
) -> list[float]:
    """A training loop in plain PyTorch on the model and the data of a session that is set up."""
    model = session.module.model
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = scheduler(optimizer) if scheduler else None
    losses, steps = [], 0
    for _ in range(epochs):
        batches = []
        for batch in session.datamodule.train_dataloader():
            batches.append(batch)
            mask, tokens = batch["attention_mask"], batch["input_ids"]
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            logits = model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits
            last = torch.stack([row.nonzero().max() for row in mask])
            loss = functional.cross_entropy(logits[torch.arange(len(logits)), last][:, ANSWERS], batch["labels"])
            losses.append(loss.item())
            (loss / accumulate).backward()
            ends = len(batches) == min(limit, 5)
            if len(batches) % accumulate == 0 or ends:
                if clip:
                    clip(model.parameters())
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
                if schedule and by_step:
                    schedule.step()
                if steps == max_steps:
                    return losses
            if ends:
                break
        if schedule and not by_step:
            schedule.step()
    return losses


LINEAR = {"class_path": "torch.optim.lr_scheduler.LinearLR", "init_args": {"start_factor": 0.1, "total_iters": 4}}


def linear(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=4)


@pytest.mark.parametrize(
    ("settings", "loop", "reference"),
    [
        ({}, {"max_epochs": 2}, {"epochs": 2}),
        ({}, {"max_epochs": 2, "accumulate_grad_batches": 2}, {"epochs": 2, "accumulate": 2}),
        ({}, {"max_epochs": 2, "accumulate_grad_batches": 3}, {"epochs": 2, "accumulate": 3}),
        (
            {"lr_scheduler_init": {**LINEAR, "interval": "step"}},
            {"max_epochs": 2},
            {"epochs": 2, "scheduler": linear, "by_step": True},
        ),
        ({"lr_scheduler_init": LINEAR}, {"max_epochs": 3}, {"epochs": 3, "scheduler": linear}),
        (
            {},
            {"max_epochs": 2, "gradient_clip_val": 0.05},
            {"epochs": 2, "clip": lambda items: nn.utils.clip_grad_norm_(items, 0.05)},
        ),
        (
            {},
            {"max_epochs": 2, "gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"},
            {"epochs": 2, "clip": lambda items: nn.utils.clip_grad_value_(items, 1e-3)},
        ),
        ({}, {"max_epochs": -1, "max_steps": 7}, {"epochs": 9, "max_steps": 7}),
        ({}, {"max_epochs": 2, "limit_train_batches": 3}, {"epochs": 2, "limit": 3}),
        ({}, {"max_epochs": 2, "limit_train_batches": 0.4}, {"epochs": 2, "limit": 2}),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else None,
)
def test_training_equals_a_loop_written_by_hand(make, settings, loop, reference):
    """With dropout, shuffling and ragged batches: every loss and every weight at the end."""
    bare = make(**settings)
    it.it_init(**bare)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        expected = by_hand(bare, **reference)
    session = make(**settings)
    before = torch.get_rng_state()
    with torch.no_grad():  # whatever the caller had switched off
        it.fit(**session, loop_cfg=quiet(seed=11, limit_val_batches=0, **loop))
    assert torch.equal(torch.get_rng_state(), before)
    assert session.module.losses == expected
    trained = weights(session.module.model)
    for name, item in weights(bare.module.model).items():
        assert torch.equal(trained[name], item), name


def test_a_plateau_scheduler_watches_its_metric(make):
    plateau = {
        "class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau",
        "init_args": {"patience": 0, "threshold": 1e6, "threshold_mode": "abs"},
        "monitor": "val_loss",
    }
    rates = []

    class Module(Recorder):
        def on_train_epoch_start(self):
            rates.append(self.optimizer_of_the_loop.param_groups[0]["lr"])

        def configure_optimizers(self):
            setup = super().configure_optimizers()
            self.__dict__["optimizer_of_the_loop"] = setup.optimizers[0]
            return setup

    it.fit(**make(module_cls=Module, lr_scheduler_init=plateau), loop_cfg=quiet(max_epochs=3))
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4])
    with pytest.raises(it.TrainingError, match="monitors 'nothing', which is None now. Logged: train_loss"):
        it.fit(
            **make(lr_scheduler_init={**plateau, "monitor": "nothing"}),
            loop_cfg=quiet(limit_val_batches=0),
        )


class LogsOptions(it.ClassificationModule):
    """Logs what can be computed by hand: the batch's index and its rows."""

    def training_step(self, batch, batch_idx):
        self.log("index", float(batch_idx))
        self.log("mean_index", float(batch_idx), on_epoch=True)
        return super().training_step(batch, batch_idx)

    def test_step(self, batch, batch_idx):
        self.log("by_rows", float(batch_idx))
        self.log("by_option", float(batch_idx), batch_size=1)
        self.log("last", float(batch_idx), on_epoch=False)

    def on_test_epoch_end(self):
        self.log("at_the_end", 7.0)


def test_means_weigh_batches_by_their_rows(make):
    session = make(module_cls=LogsOptions)
    metrics = it.test(**session, loop_cfg=quiet()).metrics
    assert metrics == pytest.approx({"by_rows": (0 * 3 + 1 * 3 + 2 * 1) / 7, "by_option": 1.0, "at_the_end": 7.0})
    metrics = it.fit(**session, loop_cfg=quiet(limit_val_batches=0)).metrics
    assert metrics["index"] == 4
    assert metrics["mean_index"] == pytest.approx((0 + 5 + 10 + 15 + 4 * 4) / 24)
    limited = it.test(**session, loop_cfg=quiet(limit_test_batches=2)).metrics
    assert limited["by_rows"] == pytest.approx(0.5)


def test_the_metrics_file_has_a_line_for_each_step_and_each_epoch(make, tmp_path):
    it.fit(**make(), loop_cfg=quiet(max_epochs=2, run_dir=tmp_path / "run", log_every_n_steps=2))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"], "val_loss" in line) for line in lines] == [
        (2, 0, False),
        (4, 0, False),
        (5, 0, True),
        (6, 1, False),
        (8, 1, False),
        (10, 1, False),
        (10, 1, True),
    ]
    assert lines[0]["lr"] == 1e-3


def test_modes_gradients_and_hooks(make):
    seen: list[Any] = []

    class Module(it.ClassificationModule):
        def training_step(self, batch, batch_idx):
            seen.append(("train", self.model.training, torch.is_grad_enabled()))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch):  # as some write it: without an index
            seen.append(("val", self.model.training, torch.is_grad_enabled()))

    for name in ("fit_start", "train_start", "train_epoch_start", "validation_start", "validation_epoch_start",
                 "validation_epoch_end", "validation_end", "train_epoch_end", "train_end", "fit_end"):  # fmt: skip
        setattr(Module, f"on_{name}", lambda self, name=name: seen.append(name))
    session = make(module_cls=Module)
    it.fit(**session, loop_cfg=quiet(limit_train_batches=1, limit_val_batches=1))
    assert seen == [
        *("fit_start", "train_start", "train_epoch_start", ("train", True, True)),
        *("validation_start", "validation_epoch_start", ("val", False, False)),
        *("validation_epoch_end", "validation_end", "train_epoch_end", "train_end", "fit_end"),
    ]
    assert not any(part.training for part in session.module.modules())


def test_every_step_is_wrapped_once_whoever_calls_it(make, adapter_of, tmp_path):
    adapter_of(
        "recorder",
        body="""
        steps = []

        @it.hookimpl(wrapper=True)
        def it_run_step(self, module, step_name):
            self.steps.append(step_name)
            return (yield)
        """,
    )
    session = make(adapters=("recorder",))
    recorder = next(each.plugin for each in session.context.adapters if each.name == "recorder")
    one = {f"limit_{split}_batches": 1 for split in ("train", "val", "test", "predict")}
    for loop in (it.fit, it.validate, it.test, it.predict):
        loop(**session, loop_cfg=quiet(**one))
    batch = next(iter(session.datamodule.train_dataloader()))
    session.module.training_step(batch, 0)
    session.module.run_step("training_step", batch, 0)
    assert recorder.steps == [
        *("training_step", "validation_step", "validation_step", "test_step", "predict_step"),
        *("training_step", "training_step"),
    ]


def test_early_stop_keeps_the_best_checkpoint(make, tmp_path):
    values = iter([3.0, 2.0, 2.5, float("nan"), 2.2, 1.0])

    class Module(it.ClassificationModule):
        def on_validation_epoch_end(self):
            self.log("watched", next(values))

    stop = it.EarlyStopping(monitor="watched", patience=3)
    result = it.fit(
        **make(module_cls=Module),
        loop_cfg=quiet(max_epochs=9, early_stopping=stop, run_dir=tmp_path / "run", keep_checkpoints=1),
    )
    assert result.stopped_early
    assert result.global_step == 25
    assert result.best_checkpoint.name == "step=00000010-epoch=00002"
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.is_dir())
    assert kept == [result.best_checkpoint.name, result.checkpoint.name]
    with pytest.raises(it.TrainingError, match="monitors 'absent', which nothing logged. Logged: train_loss"):
        it.fit(**make(), loop_cfg=quiet(early_stopping=it.EarlyStopping(monitor="absent")))


def module_that_returns(change: Callable[[torch.Tensor], Any]) -> type:
    class Module(it.ClassificationModule):
        def training_step(self, batch, batch_idx):
            return change(super().training_step(batch, batch_idx))

    return Module


class ForgetsTheModel(it.ClassificationModule):
    """Its optimizer holds one parameter of many."""

    def configure_optimizers(self):
        return torch.optim.SGD([next(self.model.parameters())], 0.1)


class TwoOptimizers(it.ClassificationModule):
    """Core's loop steps one."""

    def configure_optimizers(self):
        parameters = list(self.model.parameters())
        return [torch.optim.SGD(parameters[:5], 0.1), torch.optim.SGD(parameters[5:], 0.1)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"module_cls": module_that_returns(lambda loss: loss * float("nan"))}, "returned the loss nan. Nothing was"),
        ({"module_cls": module_that_returns(lambda loss: loss / 0)}, "returned the loss inf"),
        ({"module_cls": module_that_returns(lambda loss: loss.expand(3))}, r"returned a loss of shape \(3,\)"),
        ({"module_cls": module_that_returns(lambda loss: loss.item())}, "returned float where a loss is expected"),
        ({"module_cls": module_that_returns(lambda loss: {"los": loss})}, r"a mapping with the keys \['los'\]"),
        ({"module_cls": module_that_returns(lambda loss: loss.detach())}, "depends on no trainable parameter"),
        ({"module_cls": it.ITModule}, "has no training_step, which fit calls for each batch. Define"),
        ({"optimizer_init": None}, "has no optimizer, so nothing would be trained. Set ITConfig"),
        ({"freeze": True}, "no parameter requires a gradient. Set freeze=False"),
        ({"module_cls": ForgetsTheModel}, "marked trainable and are in no optimizer: model.transformer.wpe.weight"),
        ({"module_cls": TwoOptimizers}, "returned 2 optimizers; this loop steps one"),
        ({"optimizer_init": {"class_path": "torch.optim.AdamW", "init_args": {"rate": 1}}}, "does not take its init_a"),
        ({"lr_scheduler_init": {**LINEAR, "interval": "batch"}}, "lr_scheduler_init: 'interval' must be in"),
    ],
)
def test_training_that_cannot_work_is_refused(make, settings, message):
    with pytest.raises(it.InterpretuneError, match=message):
        it.fit(**make(**settings), loop_cfg=quiet())


@pytest.mark.parametrize("loop", ["validate", "test", "predict"])
def test_a_missing_step_of_an_evaluation_is_named(make, loop):
    step = "validation_step" if loop == "validate" else f"{loop}_step"
    with pytest.raises(it.TrainingError, match=f"has no {step}, which {loop} calls for each batch"):
        getattr(it, loop)(**make(module_cls=it.ITModule))


def test_a_batch_may_be_skipped(make):
    session = make(module_cls=module_that_returns(lambda loss: None))
    it.it_init(**session)
    before = weights(session.module)
    assert it.fit(**session, loop_cfg=quiet(limit_val_batches=0)).global_step == 5
    assert all(torch.equal(before[name], item) for name, item in session.module.named_parameters())


class Stream(torch.utils.data.IterableDataset):
    """Rows of unknown number."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_loaders_without_a_length_and_wrong_loaders(make):
    session = make()
    it.it_init(**session)
    datamodule, rows = session.datamodule, list(session.datamodule.dataset["train"])
    stream = torch.utils.data.DataLoader(Stream(rows), batch_size=5, collate_fn=datamodule.data_collator)
    datamodule.train_dataloader = lambda: stream
    options = {"accumulate_grad_batches": 2, "limit_val_batches": 0}
    assert it.fit(**session, loop_cfg=quiet(**options)).global_step == 3  # the fifth batch makes a step alone
    assert it.fit(**session, loop_cfg=quiet(limit_train_batches=3, **options)).global_step == 2
    for loader, message in (
        (stream, "without a length cannot be limited to the share 0.5"),
        ([stream, stream], "train_dataloader returned 2 loaders; this loop reads one"),
        (torch.utils.data.DataLoader([]), "The loader has no batches"),
    ):
        datamodule.train_dataloader = lambda loader=loader: loader
        with pytest.raises(it.TrainingError, match=message):
            it.fit(**session, loop_cfg=quiet(limit_train_batches=0.5 if loader is stream else None))


def test_several_processes_need_a_framework(make, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(it.TrainingError, match="WORLD_SIZE is 2, and core's loop trains in one process"):
        it.fit(**make())
    monkeypatch.setenv("WORLD_SIZE", "${SLURM_NTASKS}")
    with pytest.raises(it.ConfigurationError, match="The environment has no RANK, WORLD_SIZE=.{SLURM_NTASKS}"):
        it.fit(**make())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": -1}, "neither max_epochs nor max_steps"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches is 0; it must be at least 1"),
        ({"limit_val_batches": 1.5}, "limit_val_batches is 1.5"),
        ({"gradient_clip_algorithm": "both"}, "gradient_clip_algorithm is 'both'"),
    ],
)
def test_loop_configurations_that_make_no_sense(options, message):
    with pytest.raises(it.ConfigurationError, match=message):
        it.LoopConfig(**options)
