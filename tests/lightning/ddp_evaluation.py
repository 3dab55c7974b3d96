"""Run as a script by the tests, as Lightning's users start several processes: evaluations whose batches are shared."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torchmetrics import CatMetric, MeanMetric

import interpretune as it
from tests.sessions import make_session

SIZES = [(1, 3), (3, 2), (9, 1), (9, 4)]
"""Rows and rows of a batch."""


class Logs(it.ClassificationModule):
    """Logs what users log: means, sums, counts, extremes, weighted means, and objects of torchmetrics."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mean_length, self.lengths = MeanMetric(), CatMetric()

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        self.log_all("test", batch)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log_all("val", batch)

    def log_all(self, split: str, batch: Mapping[str, Tensor]) -> None:
        lengths = batch["attention_mask"].sum(-1)
        self.log(f"{split}_rows", len(lengths), False, sync_dist=True, reduce_fx="sum")
        self.log(f"{split}_tokens", lengths.sum(), sync_dist=True, reduce_fx=torch.sum)
        self.log(f"{split}_longest", lengths.max(), sync_dist=True, reduce_fx="max")
        self.log(f"{split}_shortest", lengths.min().float(), sync_dist=True, reduce_fx="min")
        self.log(f"{split}_label", batch["labels"].float().mean(), sync_dist=True)
        ids = (batch["input_ids"] * batch["attention_mask"]).sum() / lengths.sum()
        self.log(f"{split}_token_id", ids, sync_dist=True, batch_size=int(lengths.sum()))
        self.mean_length.update(lengths.float())
        self.lengths.update(lengths.float())
        self.log(f"{split}_mean_length", self.mean_length)

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self.all_lengths = sorted(torch.as_tensor(self.lengths.compute()).reshape(-1).tolist())
        self.lengths.reset()

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.lengths.reset()


def session_of(folder: Path, rows: int, batch_size: int) -> it.ITSession:
    session = make_session(
        folder / f"{rows}", adapters=("lightning",), init=False, n_rows=rows, module_cls=Logs,
    )  # fmt: skip
    session.datamodule.itdm_cfg.eval_batch_size = batch_size
    return session


def numbers(folder: Path, rows: int, batch_size: int, devices: int) -> dict[str, Any]:
    """What validation, test and prediction give."""
    session = session_of(folder, rows, batch_size)
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, default_root_dir=folder,
    )  # fmt: skip
    found: dict[str, Any] = {}
    for loop in ("validate", "test"):
        (metrics,) = getattr(trainer, loop)(**session, verbose=False)
        found |= metrics
    found["lengths"] = session.module.all_lengths
    found["predictions"] = [batch["logits"].tolist() for batch in trainer.predict(**session)]
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    folder, devices = Path(sys.argv[1]), int(sys.argv[2])
    results = {}
    for rows, batch_size in SIZES:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", category=UserWarning, message=".*(counted once|unequally many rows).*")
            results[f"{rows}/{batch_size}"] = numbers(folder, rows, batch_size, devices)
    rank = torch.distributed.get_rank() if devices > 1 else 0
    (folder / f"found-{devices}-{rank}.json").write_text(json.dumps(results))
