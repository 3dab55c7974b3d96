"""Run as a script by the tests: trains under Lightning, and kills itself in the middle of moving a checkpoint."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import interpretune as it
from tests.sessions import make_session


def train(folder: Path, **options: Any) -> tuple[it.ITSession, it.LoopResult]:
    """Three epochs of three batches, in order."""
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.02, "momentum": 0.9}}
    session = make_session(
        folder, adapters=("lightning",), init=False, module_cls=it.ClassificationModule, optimizer_init=sgd
    )
    session.datamodule.itdm_cfg.dataloader_kwargs["shuffle"] = False
    return session, it.fit(**session, loop_cfg=it.LoopConfig(max_epochs=3, progress=False, **options))


if __name__ == "__main__":
    folder, fatal = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    moved: list[Any] = []

    def move_some(source: str, target: str) -> None:
        """Copy as from another file system, and die in the middle of the chosen file."""
        moved.append(target)
        content = Path(source).read_bytes()
        dies = len(moved) == fatal
        Path(target).write_bytes(content[: len(content) // 2] if dies else content)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)

    shutil.move = move_some
    train(folder, run_dir=folder / "run")
