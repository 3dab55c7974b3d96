"""``it.fit`` and the others under Lightning: what the options of ``LoopConfig`` mean there."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import interpretune as it
from tests.sessions import make_session

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def make(tmp_path: Path):
    def make(framework: str = "lightning", kind: str = "gpt2", **settings: Any) -> it.ITSession:
        adam = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}
        options = {"module_cls": it.ClassificationModule, "optimizer_init": adam, **settings}
        return make_session(tmp_path, kind, adapters=(framework,), init=False, **options)

    return make


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_the_newest_checkpoints_are_kept(make, tmp_path):
    run = tmp_path / "run"
    it.fit(**make(), loop_cfg=it.LoopConfig(max_epochs=4, keep_checkpoints=3, run_dir=run, progress=False))
    assert names(run) == ["epoch=1-step=6.ckpt", "epoch=2-step=9.ckpt", "epoch=3-step=12.ckpt", "last.ckpt"]


def test_checkpoints_by_steps_end_with_the_end(make, tmp_path):
    """Nine steps are no multiple of two, and the run goes on from the ninth."""
    run = tmp_path / "run"
    options: dict[str, Any] = {"max_epochs": -1, "checkpoint_every_n_steps": 2, "run_dir": run, "progress": False}
    session = make()
    result = it.fit(**session, loop_cfg=it.LoopConfig(max_steps=9, **options))
    assert names(run) == ["epoch=1-step=6.ckpt", "epoch=2-step=8.ckpt", "last.ckpt"]
    assert torch.load(result.checkpoint, weights_only=True)["global_step"] == 9
    other = make()
    it.validate(**other, loop_cfg=it.LoopConfig(resume_from="last", run_dir=run, progress=False))
    for name, item in session["model"].named_parameters():
        assert torch.equal(other["model"].get_parameter(name), item), name
    assert it.fit(**make(), loop_cfg=it.LoopConfig(max_steps=12, resume_from="last", **options)).global_step == 12


@pytest.mark.parametrize("progress", [True, False])
def test_devices_are_announced_where_progress_is(make, monkeypatch, progress):
    told, handler, logger = [], logging.Handler(), logging.getLogger("lightning.pytorch.utilities.rank_zero")
    handler.emit = lambda record: told.append(record.getMessage())
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    logging.disable(logging.NOTSET)
    it.test(**make(), loop_cfg=it.LoopConfig(progress=progress))
    assert any("GPU available" in text for text in told) is progress
    assert logger.filters == []


def test_checkpoint_callbacks_of_the_user_need_no_run_folder(make, tmp_path):
    session = make(trainer_kwargs={"callbacks": [ModelCheckpoint(tmp_path / "own", monitor="val_loss")]})
    result = it.fit(**session, loop_cfg=it.LoopConfig(progress=False))
    assert result.best_checkpoint.parent == tmp_path / "own"
    assert "test_loss" in it.test(**session, loop_cfg=it.LoopConfig(progress=False)).metrics


@pytest.mark.parametrize("framework", ["core", "lightning"])
@pytest.mark.parametrize(
    ("values", "patience", "epochs"), [((float("nan"), 3.0, 2.0), 1, 1), ((3.0, float("nan"), 2.0, 2.5, 2.6), 2, 5)]
)
def test_a_metric_that_is_no_number_is_no_improvement_in_both_loops(make, framework, values, patience, epochs):
    watched = iter(values)

    class Module(it.ClassificationModule):
        def on_validation_epoch_end(self):
            self.log("watched", next(watched))

    stop = it.EarlyStopping(monitor="watched", patience=patience)
    options = {"trainer_kwargs": {"num_sanity_val_steps": 0}} if framework == "lightning" else {}
    session = make(framework, module_cls=Module, **options)
    result = it.fit(**session, loop_cfg=it.LoopConfig(max_epochs=9, early_stopping=stop, progress=False))
    assert result.stopped_early
    assert result.global_step == 3 * epochs


@pytest.mark.parametrize("bits", [4, 8])
def test_lora_on_quantized_weights_goes_on_from_a_checkpoint(make, tmp_path, bits):
    quantized: dict[str, Any] = {
        "hf_from_pretrained_cfg": it.HFFromPretrainedConfig(quantization={f"load_in_{bits}bit": True}),
        "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    }
    options: dict[str, Any] = {"run_dir": tmp_path / "run", "resume_from": "last", "progress": False}
    it.fit(**make("lightning", "llama", **quantized), loop_cfg=it.LoopConfig(max_epochs=1, **options))
    session = make("lightning", "llama", **quantized)
    assert it.fit(**session, loop_cfg=it.LoopConfig(max_epochs=2, **options)).global_step == 6
    other = make("lightning", "llama", **quantized)
    it.validate(**other, loop_cfg=it.LoopConfig(**options))
    trained = {name: item for name, item in session["model"].named_parameters() if item.requires_grad}
    assert trained
    for name, item in trained.items():
        assert torch.equal(other["model"].get_parameter(name), item), name
    if bits == 4:
        with torch.no_grad():
            other["model"].model.model.layers[1].mlp.up_proj.weight.bitwise_not_()
        with pytest.raises(it.CheckpointError, match=r"quantized weights model.model.layers.1.mlp.up_proj.weight have"):
            it.validate(**other, loop_cfg=it.LoopConfig(**options))
