"""Rules of what a training writes: into its folder, nowhere else, and so that it can be read again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from interpretune.plugins.declaration import Level
from interpretune.session.session import it_session_end
from interpretune.testing.comparing import same
from interpretune.testing.rule import expect, rule
from interpretune.testing.rules.fitting import refusals_skip, trained
from interpretune.testing.step_notes import NotingModule
from interpretune.testing.workbench import Bench
from interpretune.training.config import LoopConfig
from interpretune.training.start import test

TRAINED = "a training that wrote checkpoints"


@rule(stack=True, levels=[Level.framework], after=["loop-trains"])
def loop_writes_to_run_dir(bench: Bench) -> None:
    """The loop fit writes checkpoints and metrics into run_dir and nothing elsewhere; without run_dir, nothing."""
    with _nothing_elsewhere(bench, "a training without run_dir"):
        it_session_end(**trained(bench, max_epochs=1))
    run_dir, checkpoint, _ = _written(bench)
    expect(any(file.is_file() for file in run_dir.rglob("*")), "a training with run_dir wrote no file into it", "files")
    expect(checkpoint is not None, "LoopResult.checkpoint of a training with run_dir is None", "the newest checkpoint")
    inside = Path(checkpoint).exists() and Path(checkpoint).resolve().is_relative_to(run_dir.resolve())
    expect(inside, f"the checkpoint {checkpoint} is not in run_dir, {run_dir}", "an existing checkpoint in it")


@rule(stack=True, levels=[Level.framework], after=["loop-writes-to-run-dir"])
def checkpoints_are_loaded(bench: Bench) -> None:
    """A loop with resume_from='last' runs with the weights of the newest checkpoint in run_dir."""
    run_dir, _, loss = _written(bench)
    session = bench.new_session(module_cls=NotingModule, freeze=False)
    before = test(**session, loop_cfg=LoopConfig(progress=False)).metrics["test_loss"]
    expect(abs(before - loss) > 1e-4, f"the training changed test_loss by {abs(before - loss):.2g} only", "a change")
    options: dict[str, Any] = {"run_dir": run_dir, "resume_from": "last"}
    with refusals_skip(options):
        found = test(**session, loop_cfg=LoopConfig(progress=False, **options)).metrics["test_loss"]
    same(torch.tensor(found), torch.tensor(loss), "test_loss of another session, with resume_from='last',")
    it_session_end(**session)


def _written(bench: Bench) -> tuple[Path, Any, float]:
    """A training with ``run_dir``: the folder, the checkpoint that it names, and the loss of a test after it."""
    if TRAINED not in bench.notes:
        run_dir = bench.folder / "run"
        with _nothing_elsewhere(bench, "a training with run_dir"):
            session = trained(bench, max_epochs=1, run_dir=run_dir, limit_val_batches=1)
        checkpoint = bench.notes["fit"].checkpoint
        loss = test(**session, loop_cfg=LoopConfig(progress=False)).metrics["test_loss"]
        it_session_end(**session)
        bench.notes[TRAINED] = run_dir, checkpoint, loss
    found: tuple[Path, Any, float] = bench.notes[TRAINED]
    return found


@contextlib.contextmanager
def _nothing_elsewhere(bench: Bench, what: str) -> Iterator[None]:
    """Expect that no file is written into the working directory and the home, which are empty folders meanwhile."""
    work, home = (bench.folder / "elsewhere" / name for name in ("work", "home"))
    for place in (work, home):
        place.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(work)
    try:
        with mock.patch.dict(os.environ, {"HOME": str(home)}):
            yield
    finally:
        os.chdir(before)
    for place, name in ((work, "the working directory"), (home, "the home folder")):
        files = sorted(str(file.relative_to(place)) for file in place.rglob("*") if file.is_file())
        expect(not files, f"{what} wrote {', '.join(files)} into {name}", "nothing outside of run_dir")
