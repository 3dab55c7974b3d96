"""Run as a script by the tests: trains with a checkpoint after every step, and kills itself where it is told to."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config

import interpretune as it
from interpretune.training import checkpoint
from tests.sessions import make_session
from tests.tiny import CONTEXT_LENGTH, VOCABULARY


def train(folder: Path, **options: Any) -> tuple[it.ITSession, it.LoopResult]:
    """Three epochs of five batches with dropout, in an order that the seed gives."""
    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=CONTEXT_LENGTH, n_embd=32, n_layer=2, n_head=4, n_inner=64
    )
    session = make_session(
        folder,
        init=False,
        module_cls=it.ClassificationModule,
        hf_config=config,
        optimizer_init={"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
        lr_scheduler_init={
            "class_path": "torch.optim.lr_scheduler.CosineAnnealingLR",
            "init_args": {"T_max": 15},
            "interval": "step",
        },
    )
    session.datamodule.itdm_cfg.train_batch_size = 5
    cfg = it.LoopConfig(**{"max_epochs": 3, "seed": 5, "progress": False, "keep_checkpoints": 9, **options})
    return session, it.fit(**session, loop_cfg=cfg)


def die() -> None:
    """As if the machine had gone."""
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    folder, where, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    saved: list[Path] = []
    write = checkpoint.save_file

    def save_some(tensors: Any, path: Path) -> None:
        """Write all of the file, and die in the middle of the chosen one."""
        saved.append(path)
        write(tensors, path)
        if where == "writing" and len(saved) == step:
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            die()

    checkpoint.save_file = save_some
    if where == "between":
        it.ClassificationModule.on_train_epoch_end = lambda self: die() if self.current_epoch == step else None
    train(folder, run_dir=folder / "run", checkpoint_every_n_steps=1)
