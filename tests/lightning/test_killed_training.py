"""Checkpoints of ``it.fit`` under Lightning are whole or absent: a killed training goes on from the last whole one."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO

import interpretune as it
from interpretune_lightning.whole_files import WholeFiles, checkpoint_plugins
from tests.lightning.killed_training import train
from tests.other_process import run_script


@pytest.mark.parametrize(("fatal", "steps"), [(2, 0), (4, 3)], ids=["first-last", "second-last"])
def test_a_training_that_was_killed_while_it_saved_goes_on(tmp_path, quiet, fatal, steps):
    """Each epoch saves a file of its own and then ``last.ckpt``."""
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


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a training with checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder, run_dir=folder / "run")
    return folder / "run"


def test_a_damaged_checkpoint_is_refused(tmp_path, run):
    """By content: a flipped bit in a weight makes another weight, and torch looks at no checksum."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    last = folder / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    weights = torch.load(last, weights_only=True)["state_dict"]
    name, weight = max(weights.items(), key=lambda item: item[1].numel())
    at = content.index(weight.numpy().tobytes()[:64])
    content[at] ^= 1
    last.write_bytes(content)
    assert not torch.equal(torch.load(last, weights_only=True)["state_dict"][name], weight)
    with pytest.raises(it.CheckpointError, match=r"last\.ckpt is damaged: its part .* has another content"):
        train(tmp_path, run_dir=folder, resume_from="last")
    last.write_bytes(content[: len(content) // 2])
    with pytest.raises(it.CheckpointError, match=r"last\.ckpt is damaged or no checkpoint"):
        train(tmp_path, run_dir=folder, resume_from="last")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("file write failed")])
def test_a_disk_that_fills_up_leaves_the_earlier_one(tmp_path, monkeypatch, error):
    place = tmp_path / "last.ckpt"
    WholeFiles().save_checkpoint({"step": 1}, place)
    before = place.read_bytes()

    def half(_, checkpoint, path, options=None):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", half)
    with pytest.raises(it.CheckpointError, match=r"last\.ckpt could not be written .*Free some space"):
        WholeFiles().save_checkpoint({"step": 2}, place)
    assert place.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
