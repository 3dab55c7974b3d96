"""Checkpoints of ``it.fit`` under Lightning are whole or absent: a killed training goes on from the last whole one."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from interpretune_lightning.whole_files import WholeFiles, checkpoint_plugins
from tests.lightning.killed_training import train
from tests.other_process import run_script


@pytest.mark.parametrize(("fatal", "steps"), [(2, 0), (4, 3)], ids=["first-last", "second-last"])
def test_a_training_that_was_killed_while_it_saved_goes_on(tmp_path, caplog, fatal, steps):
    """Each epoch saves a file of its own and then ``last.ckpt``."""
    caplog.set_level(logging.ERROR, "lightning.pytorch")
    run_script(Path(__file__).with_name("killed_training.py"), tmp_path, fatal, returncode=-signal.SIGKILL)
    folder = tmp_path / "run" / "checkpoints"
    found = {path.name: torch.load(path, weights_only=True)["global_step"] for path in folder.glob("*.ckpt")}
    assert found.get("last.ckpt", 0) == steps
    session, result = train(tmp_path, run_dir=tmp_path / "run", resume_from="last")
    assert result.global_step == 9
    expected, _ = train(tmp_path)
    for name, item in expected["model"].named_parameters():
        torch.testing.assert_close(session["model"].get_parameter(name), item, rtol=0, atol=1e-5)


def test_plugins_of_the_user_stay():
    class Own(TorchCheckpointIO):
        """Somebody's way of saving."""

    own, other = Own(), object()
    assert checkpoint_plugins({"plugins": own}) == [own]
    assert checkpoint_plugins({"plugins": [other], "strategy": "fsdp"}) == [other]
    first, second = checkpoint_plugins({"plugins": [other], "strategy": "ddp"})
    assert first is other
    assert isinstance(second, WholeFiles)
