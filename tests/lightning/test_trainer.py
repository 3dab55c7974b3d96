"""Lightning's own Trainer with composed sessions: what its users rely on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional

import interpretune as it
from interpretune_lightning import Trainer as OurTrainer
from tests.sessions import make_session
from tests.tiny_latents import RandomDictionary

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
ADAM: dict[str, Any] = {"optimizer_init": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}}


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def make(tmp_path: Path):
    def make(adapters: tuple[str, ...] = ("lightning",), init: bool = False, **settings: Any) -> it.ITSession:
        return make_session(
            tmp_path, adapters=adapters, init=init, **{"module_cls": it.ClassificationModule, **ADAM, **settings}
        )

    return make


@pytest.fixture
def trainer_of(tmp_path: Path):
    def trainer_of(**options: Any) -> Trainer:
        return Trainer(**{**QUIET, "default_root_dir": tmp_path / "lightning", **options})

    return trainer_of


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def test_the_composed_classes_are_lightning_s(make):
    session = make()
    assert set(session) == {"datamodule", "model"}
    assert isinstance(session["model"], LightningModule)
    assert isinstance(session["datamodule"], LightningDataModule)
    assert type(session["model"]).__name__ == "ClassificationModule"


@pytest.mark.parametrize("initialised", [False, True])
def test_fit_validate_test_and_predict_take_the_session(make, trainer_of, initialised):
    """Nobody needs to call it_init: the trainer's own hooks do; and calling it changes nothing."""
    session = make(init=initialised)
    trainer = trainer_of(max_epochs=2)
    before = weights(session["model"])
    trainer.fit(**session)
    assert trainer.global_step == session["model"].global_step == 6
    assert any(not torch.equal(before[name], item) for name, item in session["model"].named_parameters())
    assert {"train_loss", "val_loss", "val_accuracy"} <= set(trainer.callback_metrics)
    [validated] = trainer.validate(**session, verbose=False)
    [tested] = trainer.test(**session, verbose=False)
    assert validated["val_loss"] == pytest.approx(tested["test_loss"])
    predictions = trainer.predict(**session)
    assert torch.cat([each["predictions"] for each in predictions]).shape == (7,)


class Calls(list):
    """A record, which what is prepared does not depend on."""

    def identity(self):
        return None


def test_data_is_prepared_once_by_trainer_and_session_together(make, trainer_of, monkeypatch):
    prepared = Calls()
    original = it.ITDataModule.prepare_data
    monkeypatch.setattr(
        it.ITDataModule, "prepare_data", lambda self, model=None: (prepared.append(model), original(self, model))
    )
    session = make()
    trainer_of(max_epochs=1).fit(**session)
    trainer_of().test(**session, verbose=False)
    assert prepared == [session["model"]]


def test_the_users_setup_runs_once_with_the_data_module(make, trainer_of):
    calls = []

    class Module(it.ClassificationModule):
        def setup(self, *args, **kwargs):
            super().setup(*args, **kwargs)
            calls.append(sorted(kwargs))

    session = make(module_cls=Module)
    trainer_of(max_epochs=1).fit(**session)
    trainer_of().test(**session, verbose=False)
    assert calls == [["datamodule"]]
    assert session["model"].datamodule is session["datamodule"]


def test_the_module_in_a_step_is_what_lightning_users_know(make, trainer_of):
    seen: dict[str, Any] = {}

    class Module(it.ClassificationModule):
        def training_step(self, batch, batch_idx):
            seen.update(
                device=self.device, epoch=self.current_epoch, step=self.global_step, trainer=self.trainer, on=batch
            )
            self.log("other", 2.0, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    session = make(module_cls=Module)
    trainer = trainer_of(max_epochs=3)
    trainer.fit(**session)
    assert seen["device"] == torch.device("cpu")
    assert (seen["epoch"], seen["step"]) == (2, 8)
    assert seen["trainer"] is trainer
    assert trainer.callback_metrics["other"] == 2.0
    assert session["model"].logged_metrics["other"] == 2.0


def test_steps_are_wrapped_by_other_adapters_under_the_trainer_too(make, trainer_of, adapter_of):
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
    session = make(("lightning", "recorder"))
    trainer = trainer_of(max_epochs=1, num_sanity_val_steps=0, limit_val_batches=1)
    trainer.fit(**session)
    trainer.test(**session, verbose=False)
    recorder = next(each.plugin for each in session.context.adapters if each.name == "recorder")
    assert recorder.steps == [*["training_step"] * 3, "validation_step", *["test_step"] * 3]


def test_what_is_trained_is_in_train_mode_and_the_rest_in_eval(make, trainer_of):
    modes: dict[str, set[tuple[bool, bool]]] = {"training_step": set(), "validation_step": set()}

    class Module(it.ClassificationModule):
        def training_step(self, batch, batch_idx):
            modes["training_step"].add((self.model.training, self.latent_modules[0].training))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            modes["validation_step"].add((self.model.training, self.latent_modules[0].training))

    trainer_of(max_epochs=2).fit(
        **make(module_cls=Module, latent_models=[RandomDictionary("blocks.1.hook_resid_post")])
    )
    assert modes == {"training_step": {(True, False)}, "validation_step": {(False, False)}}


def test_resuming_gives_the_weights_and_optimizer_state_of_a_run_without_a_break(make, trainer_of, tmp_path):
    def run(name: str, epochs: int, ckpt_path: Path | None = None) -> tuple[dict[str, torch.Tensor], Any, Path]:
        session = make()
        session["datamodule"].itdm_cfg.dataloader_kwargs["shuffle"] = False  # Lightning does not keep the order
        folder = tmp_path / name
        trainer = trainer_of(
            max_epochs=epochs, enable_checkpointing=True, callbacks=[ModelCheckpoint(folder, save_last=True)]
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # it goes on there
            trainer.fit(**session, ckpt_path=ckpt_path, weights_only=True)
        return weights(session["model"]), trainer.optimizers[0].state_dict(), folder / "last.ckpt"

    whole, whole_state, _ = run("whole", 4)
    _, _, checkpoint = run("broken", 2)
    resumed, resumed_state, _ = run("broken", 4, checkpoint)
    assert whole.keys() == resumed.keys()
    for name, item in whole.items():
        assert torch.equal(item, resumed[name]), name
    assert whole_state["param_groups"] == resumed_state["param_groups"]
    for index, state in whole_state["state"].items():
        for name, value in state.items():
            assert torch.equal(value, resumed_state["state"][index][name]), (index, name)


@pytest.fixture
def checkpoint(make, trainer_of, tmp_path) -> Path:
    trainer = trainer_of(max_epochs=1, enable_checkpointing=True, callbacks=[ModelCheckpoint(tmp_path / "made")])
    trainer.fit(**make())
    return Path(trainer.checkpoint_callback.best_model_path)


def test_a_checkpoint_of_another_stack_is_refused(make, trainer_of, checkpoint):
    session = make(("lightning", "transformer_lens"))
    with pytest.raises(it.CheckpointError) as caught:
        trainer_of(max_epochs=2).fit(**session, ckpt_path=checkpoint, weights_only=True)
    assert "made with the stack ('core', 'lightning')" in str(caught.value)
    assert "this session stacks ('core', 'lightning', 'transformer_lens')" in str(caught.value)


def test_a_checkpoint_of_another_model_is_refused(tmp_path, trainer_of, checkpoint):
    session = make_session(
        tmp_path / "llama", "llama", adapters=("lightning",), module_cls=it.ClassificationModule, init=False, **ADAM
    )
    with pytest.raises(it.CheckpointError, match="belongs to another model: the names or shapes of its parameters"):
        trainer_of(max_epochs=2).fit(**session, ckpt_path=checkpoint, weights_only=True)


def test_a_checkpoint_of_a_stranger_is_refused(make, trainer_of, tmp_path, checkpoint):
    found = torch.load(checkpoint, weights_only=True)
    del found["interpretune"]
    torch.save(found, tmp_path / "stranger.ckpt")
    with pytest.raises(it.CheckpointError, match="was not made by an interpretune session. Load its weights yourself"):
        trainer_of().test(**make(), ckpt_path=tmp_path / "stranger.ckpt", weights_only=True, verbose=False)


def test_a_checkpoint_is_known_by_the_model_before_a_strategy_shards_it(make, trainer_of):
    session = make()
    trainer_of(max_epochs=1).fit(**session)
    module = session["model"]
    whole: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    module.on_save_checkpoint(whole)
    for item in module.parameters():
        item.data = item.data.flatten()[:1]  # as FSDP does
    module.on_save_checkpoint(shared)
    assert shared == whole
    module.on_load_checkpoint({**whole, "state_dict": {}})


def test_accumulation_clipping_and_precision_are_the_trainer_s(make, trainer_of):
    """Against core's loop, which is compared with a bare PyTorch loop elsewhere."""
    core = make(("core",))
    it.fit(
        **core,
        loop_cfg=it.LoopConfig(
            max_epochs=2, accumulate_grad_batches=2, gradient_clip_val=0.1, seed=1, limit_val_batches=0, progress=False
        ),
    )
    session = make()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        trainer_of(max_epochs=2, accumulate_grad_batches=2, gradient_clip_val=0.1, limit_val_batches=0).fit(**session)
    expected = weights(core["module"])
    for name, item in weights(session["model"]).items():
        assert torch.equal(item, expected[name]), name

    dtypes = set()

    class Module(it.ClassificationModule):
        def class_logits(self, batch):
            logits = super().class_logits(batch)
            dtypes.add(logits.dtype)
            return logits

    trainer_of(max_epochs=1, precision="bf16-mixed").fit(**make(module_cls=Module))
    assert dtypes == {torch.bfloat16}


def test_callbacks_and_the_users_own_hooks_run(make, trainer_of):
    called = []

    class Recorder(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            called.append(("batch", round(outputs["loss"].item(), 3) > 0))

    class Module(it.ClassificationModule):
        def on_fit_start(self):
            super().on_fit_start()
            called.append("fit")

        def on_train_epoch_end(self):
            called.append("epoch")

    trainer_of(max_epochs=1, callbacks=[Recorder()]).fit(**make(module_cls=Module))
    assert called == ["fit", *[("batch", True)] * 3, "epoch"]


class PlainTorch(nn.Module):
    """A user's class with no base of ours, and configure_optimizers as Lightning documents it."""

    def training_step(self, batch, batch_idx):
        labels = batch.pop("labels")
        logits = self(**batch).logits
        return functional.cross_entropy(logits[:, -1], self.labels_to_ids(labels)[0])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class OwnLightningModule(PlainTorch, LightningModule):
    """A LightningModule that somebody had already."""


@pytest.mark.parametrize(
    ("framework", "module_cls"), [("core", PlainTorch), ("lightning", PlainTorch), ("lightning", OwnLightningModule)]
)
def test_users_classes_bring_their_own_optimizers(make, framework, module_cls):
    session = make((framework,), module_cls=module_cls, optimizer_init=None, freeze=False)
    setup_before = session.module.optimizers_and_schedulers
    assert setup_before is None
    loop_cfg = it.LoopConfig(max_epochs=1, limit_val_batches=0, progress=False)
    it.fit(**session, loop_cfg=loop_cfg)
    setup = session.module.optimizers_and_schedulers
    assert type(setup.optimizers[0]).__name__ == "SGD"
    assert setup.schedulers[0].interval == "step"


def test_a_session_without_the_adapter_is_told_which_tuple_to_use(make):
    trainer = OurTrainer(**QUIET)
    for call in (trainer.fit, trainer.validate, trainer.test, trainer.predict):
        session = make(("core", "transformer_lens"))
        with pytest.raises(it.ConfigurationError) as caught:
            call(**session)
        assert "composed without the Lightning adapter: its stack is ('core', 'transformer_lens')" in str(caught.value)
        assert "adapter_ctx=('lightning', 'transformer_lens')" in str(caught.value)
        with pytest.raises(it.ConfigurationError, match="composed without the Lightning adapter"):
            call(session["module"], datamodule=session["datamodule"])


@pytest.mark.parametrize("loop", ["fit", "validate", "test", "predict"])
def test_a_missing_step_is_named(make, loop):
    step = {"fit": "training_step", "validate": "validation_step"}.get(loop, f"{loop}_step")
    trainer = OurTrainer(**QUIET)
    with pytest.raises(it.TrainingError, match=f"has no {step}, which {loop} calls for each batch"):
        getattr(trainer, loop)(**make(module_cls=it.ITModule))


def test_our_trainer_runs_sessions_and_plain_lightning_modules(make, tmp_path):
    OurTrainer(**QUIET, max_epochs=1, default_root_dir=tmp_path).fit(**make())

    class Plain(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def training_step(self, batch, batch_idx):
            return self.layer(batch[0]).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    rows = torch.utils.data.TensorDataset(torch.ones(4, 2))
    trainer = OurTrainer(**QUIET, max_epochs=1, default_root_dir=tmp_path)
    trainer.fit(Plain(), torch.utils.data.DataLoader(rows))
    assert trainer.global_step == 4


class ForgetsTheModel(it.ClassificationModule):
    """Its optimizer holds one parameter of many."""

    def configure_optimizers(self):
        return torch.optim.SGD([next(self.model.parameters())], 0.1)


class ReturnsNaN(it.ClassificationModule):
    """Its loss is not a number."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * float("nan")


class ReturnsRows(it.ClassificationModule):
    """Its loss is not reduced."""

    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self.class_logits(batch), batch["labels"], reduction="none")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer_init": None}, "has no optimizer, so nothing would be trained"),
        ({"freeze": True}, "no parameter requires a gradient"),
        ({"module_cls": ForgetsTheModel}, "are marked trainable and are in no optimizer: model.transformer.wpe.weight"),
        ({"module_cls": ReturnsNaN}, "returned the loss nan. Nothing was changed"),
        ({"module_cls": ReturnsRows}, r"returned a loss of shape \(8,\); a loss is one number"),
    ],
)
def test_training_that_cannot_work_is_refused(make, trainer_of, settings, message):
    with pytest.raises(it.InterpretuneError, match=message):
        trainer_of(max_epochs=1).fit(**make(**settings))


def test_an_optimizer_that_misses_what_was_unfrozen_later_is_refused(make, trainer_of):
    session = make(latent_models=[RandomDictionary("blocks.1.hook_resid_post")], init=True)

    class Unfreezes(Callback):
        def on_fit_start(self, trainer, pl_module):
            pl_module.latent_modules.requires_grad_(True)

    with pytest.raises(it.TrainingError, match="4 parameters .* are in no optimizer: latent_modules.0.w_enc"):
        trainer_of(max_epochs=1, callbacks=[Unfreezes()]).fit(**session)


def test_data_loaders_without_a_data_module_need_it_init_first(make, trainer_of):
    session = make(init=True)
    loaders = session["datamodule"].train_dataloader(), session["datamodule"].val_dataloader()
    trainer_of(max_epochs=1).fit(session["model"], *loaders)
    with pytest.raises(it.ConfigurationError, match=r"Call it_init\(\*\*session\) first"):
        trainer_of(max_epochs=1).fit(make()["model"], *loaders)


def test_logging_and_counting_without_a_trainer(make, trainer_of):
    session = make(init=True)
    module = session["model"]
    module.log("before", torch.tensor(1.5))
    module.global_step += 3
    assert module.logged_metrics == {"before": 1.5}
    assert (module.global_step, module.current_epoch) == (3, 0)
    trainer_of(max_epochs=1).fit(**session)
    module.log_dict({"after": 2.5})
    assert module.logged_metrics["after"] == 2.5


def test_the_loops_of_core_s_names_hand_over_to_the_trainer(make, tmp_path):
    """``it.fit`` and the others under Lightning: options, checkpoints, resuming, early stop."""
    loop: dict[str, Any] = {"progress": False, "run_dir": tmp_path / "run", "seed": 2}
    stop = it.EarlyStopping(monitor="val_loss", min_delta=100.0, patience=2)
    session = make(trainer_kwargs={"callbacks": [], "logger": False})
    result = it.fit(**session, loop_cfg=it.LoopConfig(max_epochs=9, early_stopping=stop, **loop))
    assert result.stopped_early
    assert result.global_step == 9
    assert result.checkpoint.exists()
    assert result.best_checkpoint.exists()
    kept = weights(session["model"])
    other = make()
    tested = it.test(**other, loop_cfg=it.LoopConfig(resume_from="last", **loop))
    assert all(torch.equal(kept[name], item) for name, item in other["model"].named_parameters())
    assert set(tested.metrics) == {"test_loss", "test_accuracy"}
    assert len(it.predict(**other, loop_cfg=it.LoopConfig(limit_predict_batches=2, progress=False)).predictions) == 2
    loop["run_dir"] = tmp_path / "another"
    it.fit(**make(), loop_cfg=it.LoopConfig(max_epochs=1, resume_from="last", **loop))
    resumed = it.fit(**make(), loop_cfg=it.LoopConfig(max_epochs=2, resume_from="last", **loop))
    assert resumed.global_step == 6
    assert "val_loss" in it.validate(**other, loop_cfg=it.LoopConfig(progress=False)).metrics
    with pytest.raises(it.CheckpointError, match="holds checkpoints of an earlier run. Go on with it"):
        it.fit(**make(), loop_cfg=it.LoopConfig(**loop))
    with pytest.raises(it.CheckpointError, match="there are no weights to take"):
        it.test(**other, loop_cfg=it.LoopConfig(resume_from="last", run_dir=tmp_path / "empty"))
