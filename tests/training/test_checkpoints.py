"""Checkpoints of core's loop: resuming equals never having stopped, whatever stopped it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import interpretune as it
from interpretune.system.plain_files import file_sha256
from interpretune.training.checkpoint import whole_checkpoints
from interpretune.training.metric_log import MetricsFile
from tests.other_process import one_thread, run_script
from tests.sessions import make_session
from tests.training.killed_training import train


@pytest.fixture(autouse=True)
def as_in_the_script():
    """One thread, like the script that is killed."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, torch.Tensor]:
    """Weights after a training without a break."""
    with one_thread():
        session, result = train(tmp_path_factory.mktemp("whole"))
    assert result.global_step == 15
    return {name: item.detach().clone() for name, item in session.module.named_parameters()}


def assert_equal(session: it.ITSession, expected: dict[str, torch.Tensor]) -> None:
    for name, item in session.module.named_parameters():
        assert torch.equal(item, expected[name]), name


@pytest.mark.parametrize("stop", [{"max_steps": 7}, {"max_steps": 10}, {"max_epochs": 2}, {"max_epochs": 1}])
def test_a_resumed_training_equals_one_without_a_break(tmp_path, whole, stop):
    """In the middle of an epoch and at its end, with dropout, a scheduler and shuffled batches."""
    run = {"run_dir": tmp_path / "run"}
    train(tmp_path, **run, **stop)
    torch.manual_seed(123)  # another process would have another state
    session, result = train(tmp_path, **run, resume_from="last", seed=99)
    assert result.global_step == 15
    assert_equal(session, whole)
    steps = [line.split(",")[0] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 18


@pytest.mark.parametrize(
    ("where", "step", "left"), [("writing", 4, 3), ("writing", 6, 5), ("between", 1, 11)], ids=["4", "6", "epoch"]
)
def test_a_killed_training_goes_on_from_the_last_whole_checkpoint(tmp_path, whole, where, step, left):
    run_script(Path(__file__).with_name("killed_training.py"), tmp_path, where, step, returncode=-signal.SIGKILL)
    assert len(whole_checkpoints(tmp_path / "run")) == min(left, 9)
    session, result = train(tmp_path, run_dir=tmp_path / "run", resume_from="last", checkpoint_every_n_steps=1)
    assert result.global_step == 15
    assert_equal(session, whole)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*.partial"))


def test_a_run_folder_holds_one_run(tmp_path):
    train(tmp_path, run_dir=tmp_path / "run", max_epochs=1)
    with pytest.raises(it.CheckpointError, match="checkpoints of an earlier run, up to step=00000005-epoch=00001"):
        train(tmp_path, run_dir=tmp_path / "run", max_epochs=1)
    with pytest.raises(it.CheckpointError, match="is no whole checkpoint. Name a folder step="):
        train(tmp_path, run_dir=tmp_path / "run", resume_from=tmp_path / "nowhere")


def test_a_run_from_elsewhere_needs_a_folder_of_its_own(tmp_path):
    train(tmp_path, run_dir=tmp_path / "run", max_epochs=1)
    _, other = train(tmp_path, run_dir=tmp_path / "other", max_epochs=1)
    with pytest.raises(it.CheckpointError, match="checkpoints of an earlier run, up to step=00000005-epoch=00001"):
        train(tmp_path, run_dir=tmp_path / "run", resume_from=other.checkpoint, max_epochs=2)


def test_checkpoints_of_a_resumed_run_are_its_own(tmp_path):
    """From its first checkpoint a run goes on otherwise; what came after that one is another training's."""
    run = tmp_path / "run"
    train(tmp_path, run_dir=run, max_steps=4, checkpoint_every_n_steps=1)
    first = whole_checkpoints(run)[0]
    session, result = train(tmp_path, run_dir=run, max_steps=2, resume_from=first, gradient_clip_val=1e-6)
    assert [path.name for path in whole_checkpoints(run)] == [first.name, "step=00000002-epoch=00000"]
    assert result.checkpoint == whole_checkpoints(run)[-1]
    saved = load_file(result.checkpoint / "weights.safetensors")
    assert_equal(session, {name: saved[name] for name, _ in session.module.named_parameters()})


def test_the_newest_checkpoints_are_kept(tmp_path):
    train(tmp_path, run_dir=tmp_path / "run", checkpoint_every_n_steps=2, keep_checkpoints=2)
    assert [path.name for path in whole_checkpoints(tmp_path / "run")] == [
        "step=00000014-epoch=00002",
        "step=00000015-epoch=00003",
    ]


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    session = of(tmp_path)
    return it.fit(**session, loop_cfg=it.LoopConfig(run_dir=tmp_path / "run", progress=False)).checkpoint


def of(tmp_path: Path, kind: str = "gpt2", **settings: Any) -> it.ITSession:
    options = {"optimizer_init": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}, **settings}
    return make_session(tmp_path / kind, kind, init=False, module_cls=it.ClassificationModule, **options)


def resume(session: it.ITSession, checkpoint: Path, loop: str = "fit") -> it.LoopResult:
    cfg = it.LoopConfig(max_epochs=2, resume_from=checkpoint, progress=False)
    return getattr(it, loop)(**session, loop_cfg=cfg)


def test_evaluation_takes_the_weights_of_a_checkpoint(tmp_path, checkpoint):
    trained = of(tmp_path)
    expected = it.fit(**trained, loop_cfg=it.LoopConfig(progress=False, seed=1, run_dir=tmp_path / "other"))
    session = of(tmp_path, optimizer_init=None)
    metrics = resume(session, expected.checkpoint, "validate").metrics
    assert metrics["val_loss"] == pytest.approx(expected.metrics["val_loss"])
    assert_equal(session, dict(trained.module.named_parameters()))


def test_checkpoints_of_others_are_refused_and_change_nothing(tmp_path, checkpoint):
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}}
    sessions = {
        "belongs to another model: the names or shapes of its parameters": of(tmp_path, "llama"),
        "The optimizer state of .* does not fit this session": of(tmp_path, optimizer_init=adam),
    }
    for message, session in sessions.items():
        it.it_init(**session)
        before = {name: item.detach().clone() for name, item in session.module.named_parameters()}
        with pytest.raises(it.CheckpointError, match=message):
            resume(session, checkpoint)
        assert_equal(session, before)


def test_a_checkpoint_of_another_stack_is_refused(tmp_path, checkpoint):
    pytest.importorskip("interpretune_tlens")
    session = of(tmp_path, adapters=("transformer_lens",))
    with pytest.raises(it.CheckpointError) as caught:
        resume(session, checkpoint)
    assert "was made with the stack ('core',); this session stacks ('core', 'transformer_lens')" in str(caught.value)


class HeadOnly(it.ClassificationModule):
    """Trains the last norm: everything else is frozen, and is not in the checkpoint."""

    def setup(self, *args, **kwargs):
        super().setup(*args, **kwargs)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("ln_f" in name)


def test_other_frozen_weights_are_another_model(tmp_path):
    def session(shift: float) -> it.ITSession:
        made = of(tmp_path)
        made.session_cfg.module_cls = HeadOnly
        made = it.ITSession(made.session_cfg)
        with torch.no_grad():
            made.module.model.transformer.wte.weight.add_(shift)
        return made

    checkpoint = it.fit(**session(0.0), loop_cfg=it.LoopConfig(run_dir=tmp_path / "head", progress=False)).checkpoint
    assert sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")) < 1000
    with pytest.raises(it.CheckpointError, match="this session's frozen weights have other values"):
        resume(session(0.01), checkpoint)
    assert resume(session(0.0), checkpoint).global_step == 6


FILES = ["weights.safetensors", "training_state.pt", "about.json"]


def flip(path: Path) -> None:
    """One bit in the middle is another; its size is the same."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", FILES)
def test_damaged_checkpoints_are_refused(tmp_path, checkpoint, file):
    """By content: a flipped bit in a weight makes another weight."""
    path = checkpoint / file
    flip(path)
    session = of(tmp_path)
    it.it_init(**session)
    before = {name: item.detach().clone() for name, item in session.module.named_parameters()}
    for loop in ("fit", "validate"):
        with pytest.raises(it.CheckpointError, match=f"cannot be read: {file} has another content than was written"):
            resume(session, checkpoint, loop)
    assert_equal(session, before)
    path.write_bytes(b"")
    with pytest.raises(it.CheckpointError, match=rf"is no whole checkpoint .*: {file} has 0 bytes"):
        resume(of(tmp_path), checkpoint)


@pytest.mark.parametrize("file", FILES)
def test_last_passes_over_a_damaged_checkpoint(tmp_path, whole, file):
    """And goes on from the one before, to the same end."""
    run = tmp_path / "run"
    train(tmp_path, run_dir=run, max_steps=8, checkpoint_every_n_steps=2)
    flip(run / "checkpoints" / "step=00000008-epoch=00001" / file)
    with pytest.warns(UserWarning, match=rf"step=00000008.* is damaged: {file} has .* Going on from step=00000006"):
        session, result = train(tmp_path, run_dir=run, resume_from="last")
    assert result.global_step == 15
    assert_equal(session, whole)


def test_a_run_whose_checkpoints_are_all_damaged(tmp_path):
    run = tmp_path / "run"
    train(tmp_path, run_dir=run, max_epochs=1)
    for folder in whole_checkpoints(run):
        flip(folder / "weights.safetensors")
    with pytest.raises(it.CheckpointError, match=r"no checkpoint that is whole: .*weights\.safetensors has another"):
        train(tmp_path, run_dir=run, resume_from="last")


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_in_torch(*_: Any, **__: Any) -> Any:
    raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


@pytest.mark.parametrize(
    ("what", "how", "message"),
    [
        (
            "interpretune.training.checkpoint.save_file",
            full,
            r"no room for .*step=00000005.*No space left.*Free some space",
        ),
        ("torch.save", full_in_torch, r"step=00000005.* could not be written \(PytorchStreamWriter"),
    ],
)
def test_a_disk_that_fills_up_in_a_checkpoint(tmp_path, monkeypatch, what, how, message):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(what, how)
        with pytest.raises(it.CheckpointError, match=message + ".*earlier checkpoints are as they were"):
            train(tmp_path, run_dir=run)
    assert not [path for path in (run / "checkpoints").iterdir() if path.suffix != ".lock"]


def test_metrics_that_cannot_be_written(tmp_path, monkeypatch):
    file = MetricsFile(tmp_path / "run")
    file.write({"loss": 1.0}, step=1, epoch=0)
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", full)
        with pytest.raises(it.OutputError, match=r"no room for .*metrics\.jsonl .*or choose another run_dir"):
            file.write({"loss": 1.0}, step=2, epoch=0)
    file.close()
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(it.OutputError, match=r"taken/metrics\.jsonl could not be written .*Choose another run_dir"):
        MetricsFile(tmp_path / "taken")


class Malicious:
    """Unpickled, it would run code."""

    def __reduce__(self):
        return (shutil.rmtree, ("/nowhere/at/all",))


def test_a_checkpoint_runs_no_code(tmp_path, checkpoint):
    path = checkpoint / "training_state.pt"
    torch.save({"optimizers": [Malicious()]}, path)
    (checkpoint / "interpretune-manifest.json").write_text(
        json.dumps({file.name: (file.stat().st_size, file_sha256(file)) for file in map(checkpoint.joinpath, FILES)})
    )
    with pytest.raises(it.CheckpointError, match="cannot be read"):
        resume(of(tmp_path), checkpoint)
