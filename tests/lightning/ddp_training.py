"""Run as a script by the tests, as Lightning's users start several processes: a training whose batches are shared."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import BatchSampler, DataLoader
from torch.utils.data.distributed import DistributedSampler

import interpretune as it
from tests.sessions import make_session
from tests.tiny_latents import RandomDictionary

ROWS, BATCH_SIZE = 24, 4
WHAT = ("model", "latents")


def make(folder: Path, what: str) -> it.ITSession:
    """A session that trains the model or its latent model on 24 rows, without dropout."""
    settings: dict[str, Any] = {"module_cls": it.ClassificationModule}
    if what == "latents":
        latent_models = [RandomDictionary("blocks.1.hook_resid_post", seed=1)]
        settings = {
            "module_cls": it.LatentTrainingModule, "train_latent_models": True, "latent_models": latent_models
        }  # fmt: skip
    rate = 0.02 if what == "model" else 1e-3
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": rate}}  # Adam would blow up zero gradients' rounding
    session = make_session(folder, adapters=("lightning",), init=False, optimizer_init=sgd, **settings)
    session.datamodule.itdm_cfg.train_batch_size = BATCH_SIZE
    return session


def train(folder: Path, session: it.ITSession, **options: Any) -> Trainer:
    """Two epochs."""
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(**session)
    return trainer


class BatchesOfTwo:
    """Row numbers of the batches that two processes see, epoch by epoch: in turn, or both in one."""

    def __init__(self, *, in_turn: bool) -> None:
        self.in_turn = in_turn
        self.samplers = [DistributedSampler(range(ROWS), 2, rank, seed=0) for rank in (0, 1)]  # as Lightning makes them
        self.epoch = 0

    def __iter__(self) -> Iterator[list[int]]:
        for sampler in self.samplers:
            sampler.set_epoch(self.epoch)
        self.epoch += 1
        for pair in zip(*(BatchSampler(each, BATCH_SIZE, drop_last=False) for each in self.samplers), strict=True):
            yield from pair if self.in_turn else [[*pair[0], *pair[1]]]

    def __len__(self) -> int:
        return ROWS // BATCH_SIZE // (1 if self.in_turn else 2)


def alone(folder: Path, what: str, *, in_turn: bool) -> it.ITSession:
    """One process, trained on what the two would see: it accumulates over their batches, or has them in one."""
    session = make(folder, what)
    datamodule = session.datamodule
    datamodule.train_dataloader = lambda: DataLoader(
        datamodule.dataset["train"], batch_sampler=BatchesOfTwo(in_turn=in_turn), collate_fn=datamodule.data_collator
    )
    train(folder, session, accumulate_grad_batches=2 if in_turn else 1)
    return session


def trained(session: it.ITSession) -> dict[str, torch.Tensor]:
    """Weights that require a gradient."""
    return {name: item.detach() for name, item in session.module.named_parameters() if item.requires_grad}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    for what in WHAT:
        session = make(folder, what)
        trainer = train(folder, session, devices=2, strategy="ddp")
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        found = {"weights": trained(session), "steps": trainer.global_step, "metrics": metrics}
        torch.save(found, folder / f"{what}-rank{trainer.global_rank}.pt")
