"""What users of Lightning are used to: loading, hyperparameters, tuners, compiled modules."""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner

import interpretune as it
from interpretune.analysis import AnalysisCfg, AnalysisMode
from interpretune.testing.tiny_models import tiny_gpt2
from interpretune_lightning import AnalysisCallback, Trainer as OurTrainer, load_session
from interpretune_lightning.stored_session import StoredSession, read_session
from tests.sessions import make_session

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
ADAM: dict[str, Any] = {"optimizer_init": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}}
TOKEN = "hf_" + "xYzQ7" * 7

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def make(tmp_path: Path):
    def make(adapters: tuple[str, ...] = ("lightning",), **settings: Any) -> it.ITSession:
        return make_session(
            tmp_path, adapters=adapters, init=False, **{"module_cls": it.ClassificationModule, **ADAM, **settings}
        )

    return make


@pytest.fixture
def trainer_of(tmp_path: Path):
    def trainer_of(**options: Any) -> Trainer:
        return Trainer(**{**QUIET, "max_epochs": 1, "default_root_dir": tmp_path / "lightning", **options})

    return trainer_of


@pytest.fixture
def trained(make, trainer_of, tmp_path):
    def trained(**settings: Any) -> tuple[it.ITSession, Path]:
        session, folder = make(**settings), tmp_path / "made"
        trainer_of(enable_checkpointing=True, callbacks=[ModelCheckpoint(folder, filename="it")]).fit(**session)
        return session, folder / "it.ckpt"

    return trained


# ------------------------------------------------------------------------------------------------------------- loading


def same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(item, theirs[name]) for name, item in ours.items())


def test_a_checkpoint_gives_the_session_and_the_trained_module(trained, trainer_of, make):
    session, path = trained()
    loaded = load_session(path)
    assert same_weights(loaded["model"], session["model"])
    assert not same_weights(loaded["model"], make()["model"])
    loaded.session_cfg.datamodule_cfg.data = session.session_cfg.datamodule_cfg.data  # paths have become words
    assert loaded.session_cfg.datamodule_cfg == session.session_cfg.datamodule_cfg
    module = type(session["model"]).load_from_checkpoint(path)
    assert isinstance(module, it.ClassificationModule)
    assert isinstance(module, LightningModule)
    assert same_weights(module, session["model"])
    found, expected = (trainer_of().test(**item, verbose=False) for item in (loaded, session))
    assert found == expected


def test_a_model_that_was_in_memory_needs_its_configuration(trained, make):
    session, path = trained(hf_model=tiny_gpt2())
    told = r"does not hold the configuration .* module_cfg.hf_model is an object in memory \(GPT2LMHeadModel\). Pass "
    with pytest.raises(it.CheckpointError, match=told + r"session_cfg=ITSessionConfig\(...\)"):
        load_session(path)
    with pytest.raises(it.CheckpointError, match="does not hold the configuration"):
        type(session["model"]).load_from_checkpoint(path)
    other = make(hf_model=tiny_gpt2()).session_cfg
    assert same_weights(load_session(path, other)["model"], session["model"])
    assert same_weights(type(session["model"]).load_from_checkpoint(path, session_cfg=other), session["model"])
    core = make(("core",), hf_model=tiny_gpt2()).session_cfg
    with pytest.raises(it.ConfigurationError, match="Name 'lightning' in adapter_ctx"):
        load_session(path, core)
    with pytest.raises(it.ConfigurationError, match="is given lr. Its settings are those of its session"):
        type(session["model"]).load_from_checkpoint(path, lr=1.0)


class ImportedModule(it.ClassificationModule):
    """Of a module that is imported while tests run."""

    def __init__(self, *args, width=3, api_key="", **kwargs):
        super().__init__(*args, **kwargs)
        self.save_hyperparameters()


class KeyedDataModule(it.ITDataModule):
    """Gets rows from a server."""

    def __init__(self, *args, api_token=TOKEN, rows_of="a server", **kwargs):
        super().__init__(*args, **kwargs)
        self.save_hyperparameters("api_token", "rows_of")
        self.save_hyperparameters(ignore=["args", "kwargs"])


@dataclass
class Constructed:
    """Whose constructor does something."""

    def __post_init__(self):
        made.append(self)


made: list[Constructed] = []


def test_nothing_is_imported_or_run_because_a_checkpoint_says_so(trained, tmp_path, monkeypatch):
    _, path = trained(module_cls=ImportedModule)
    whole = torch.load(path, weights_only=True)

    def changed(**settings: Any) -> Path:
        found = copy.deepcopy(whole)
        found["interpretune"]["session"]["module_cfg"].update(settings)
        torch.save(found, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    load_session(changed())
    with pytest.raises(it.CheckpointError, match="trust_remote_code.*which a checkpoint alone cannot allow"):
        load_session(changed(trust_remote_code=True))
    with pytest.raises(
        it.CheckpointError, match="this.Thing, which has not been imported. Import it before, from this"
    ):
        load_session(changed(optimizer_init={"class_path": "this.Thing", "init_args": {}}))
    with pytest.raises(it.CheckpointError, match="torch.nn.Linear as its optimizer or scheduler, which it is not"):
        load_session(changed(optimizer_init={"class_path": "torch.nn.Linear", "init_args": {}}))
    made.clear()
    with pytest.raises(it.CheckpointError, match="Constructed as a configuration, which is none .* Pass session_cfg"):
        load_session(changed(lora={"<class>": f"{__name__}.Constructed"}))
    assert made == []
    damaged = [{"<class>": 5}, {"<tuple>": 5}, {"<pairs>": [["trust_remote_code", True]]}, {"<pairs>": 5}]
    for value in damaged:
        with pytest.raises(it.CheckpointError, match="is damaged: its session has"):
            load_session(changed(lora=value))
    name = next(iter(whole["state_dict"]))
    misfit = {**whole["state_dict"], name: torch.zeros(1)}
    for other, told in (
        ([1], "was not made by an interpretune session"),
        ({**whole, "interpretune": "text"}, "is damaged: its entries"),
        ({**whole, "interpretune": {**whole["interpretune"], "session": "text"}}, "is damaged: what it holds as"),
        ({key: item for key, item in whole.items() if key != "state_dict"}, "is damaged: its entries"),
        ({**whole, "state_dict": misfit}, "are not those of the session's module: .* Pass session_cfg"),
    ):
        torch.save(other, tmp_path / "other.ckpt")
        with pytest.raises(it.CheckpointError, match=f"(?s){told}"):
            load_session(tmp_path / "other.ckpt")
    monkeypatch.delitem(vars(__import__("sys").modules[__name__]), "ImportedModule")
    with pytest.raises(it.CheckpointError, match="test_habits.ImportedModule, which has not been imported"):
        load_session(path)
    for wrong in (tmp_path / "absent.ckpt", tmp_path / "changed.ckpt"):
        wrong.write_bytes(b"none") if wrong.exists() else None
        with pytest.raises(it.CheckpointError, match="does not exist|is damaged or no checkpoint"):
            load_session(wrong)


# ----------------------------------------------------------------------------------------------------- hyperparameters


def test_loggers_and_checkpoints_have_settings_and_no_credentials(make, trainer_of, tmp_path):
    hidden = it.HFFromPretrainedConfig(pretrained_kwargs={"token": TOKEN})
    cfg = make(module_cls=ImportedModule, hf_from_pretrained_cfg=hidden).session_cfg
    session = it.ITSession(replace(cfg, datamodule_cls=KeyedDataModule))
    module, datamodule = session["model"], session["datamodule"]
    assert dict(datamodule.hparams) == {"api_token": TOKEN, "rows_of": "a server"}
    module.save_hyperparameters({"api_key": TOKEN, "width": 4})
    assert (module.hparams.width, module.hparams.api_key) == (4, TOKEN)
    assert "it_cfg" not in module.hparams
    folder = tmp_path / "logs"
    callbacks = [ModelCheckpoint(folder / "checkpoints", filename="it")]
    trainer_of(logger=CSVLogger(folder), enable_checkpointing=True, callbacks=callbacks).fit(**session)
    [file] = folder.rglob("hparams.yaml")
    written = yaml.safe_load(file.read_text())
    assert written["module_cfg"]["optimizer_init"] == ADAM["optimizer_init"]
    assert written["datamodule_cfg"]["text_fields"] == ["premise", "hypothesis"]
    assert (written["adapter_ctx"], written["width"]) == (["lightning"], 4)
    assert written["rows_of"] == "a server"
    assert [item.name for item in folder.rglob("*") if item.is_file() and TOKEN.encode() in item.read_bytes()] == []
    loaded = load_session(folder / "checkpoints" / "it.ckpt").session_cfg.module_cfg
    assert loaded.hf_from_pretrained_cfg.pretrained_kwargs == {}


def test_values_of_other_kinds_come_back_as_they_were_or_are_lacking(make):
    limits = {0: "1GB", "cpu": "2GB", None: {1.5: (1, 2)}, "rate": np.float64(0.5), "rows": np.int64(3)}
    session = make(hf_from_pretrained_cfg=it.HFFromPretrainedConfig(pretrained_kwargs={"max_memory": limits}))
    stored = StoredSession.of(session["model"], session["datamodule"])
    assert stored.lacking == []
    file = io.BytesIO()
    torch.save(stored.values, file)
    file.seek(0)
    found = read_session(torch.load(file, weights_only=True), "It").module_cfg.hf_from_pretrained_cfg.pretrained_kwargs
    assert found == {"max_memory": limits}
    assert stored.settings()["module_cfg"]["hf_from_pretrained_cfg"]["pretrained_kwargs"]["max_memory"]["0"] == "1GB"
    session.session_cfg.module_cfg.hf_from_pretrained_cfg.pretrained_kwargs = {"a": {(1, 2): 3}, "b": Constructed()}
    lacking = StoredSession.of(session["model"], None).lacking
    assert [text.rpartition("pretrained_kwargs.")[2] for text in lacking] == [
        "a has the key (1, 2)",
        "b is an object in memory (Constructed)",
    ]


# -------------------------------------------------------------------------------------------------------------- tuners


def test_lr_find_reads_and_sets_the_learning_rate_of_the_configuration(make, trainer_of):
    session = make()
    module, given = session["model"], session.session_cfg.module_cfg.optimizer_init
    before = {name: item.clone() for name, item in module.state_dict().items()}
    tuner = Tuner(trainer_of(max_epochs=-1))
    found = tuner.lr_find(**session, num_training=20, min_lr=1e-4, max_lr=1.0, early_stop_threshold=None)
    assert module.lr == found.suggestion() != 1e-3
    assert all(torch.equal(before[name], item) for name, item in module.state_dict().items())
    assert given == ADAM["optimizer_init"]
    trainer = trainer_of()
    trainer.fit(**session)
    assert trainer.optimizers[0].param_groups[0]["lr"] == module.lr
    assert module.hparams_initial["module_cfg"]["optimizer_init"]["init_args"] == {"lr": module.lr}


def test_a_module_without_a_learning_rate_has_no_such_attribute(make):
    class Own(it.ClassificationModule):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.lr = 0.5

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    assert not hasattr(make(optimizer_init=None)["model"], "lr")
    module = make(module_cls=Own, optimizer_init=None, freeze=False)["model"]
    module.lr = 0.25
    assert module.configure_optimizers().param_groups[0]["lr"] == 0.25


def test_scale_batch_size_changes_what_loaders_give(make, trainer_of):
    session = make()
    datamodule = session["datamodule"]
    size = Tuner(trainer_of()).scale_batch_size(**session, init_val=2, steps_per_trial=1, max_trials=3)
    assert size == datamodule.batch_size == datamodule.itdm_cfg.train_batch_size == 8
    assert len(next(iter(datamodule.train_dataloader()))["labels"]) == 8
    assert datamodule.itdm_cfg.eval_batch_size == session.session_cfg.datamodule_cfg.eval_batch_size
    tuner = Tuner(trainer_of())
    assert tuner.scale_batch_size(**session, method="test", init_val=1, steps_per_trial=1, max_trials=2) == 2
    assert len(next(iter(datamodule.test_dataloader()))["labels"]) == 2


# ------------------------------------------------------------------------------------------------------------ compiled


class Compiler:
    """A backend of ``torch.compile`` that counts how often what it compiled runs."""

    def __init__(self):
        self.ran = 0

    def __call__(self, graph, inputs):
        def run(*args):
            self.ran += 1
            return graph.forward(*args)

        return run


class RunsNoModel(it.ClassificationModule):
    """When it is tested."""

    def test_step(self, batch, batch_idx):
        return None


def test_a_compiled_module_is_trained_compiled_and_analysed_eagerly(make, trainer_of, monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    plain, session, compiler = make(module_cls=RunsNoModel), make(module_cls=RunsNoModel), Compiler()
    compiled = torch.compile(session["model"], backend=compiler, fullgraph=True)
    for each, module in ((plain, plain["model"]), (session, compiled)):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            trainer_of(limit_train_batches=1, limit_val_batches=0).fit(module, datamodule=each["datamodule"])
    assert compiler.ran == 1
    for name, item in plain["model"].state_dict().items():
        torch.testing.assert_close(session["model"].state_dict()[name], item)
    caches = []
    for each, module in ((plain, plain["model"]), (session, compiled)):
        cfg = AnalysisCfg(mode=AnalysisMode.clean_no_sae)
        trainer = OurTrainer(**QUIET, callbacks=[AnalysisCallback(cfg)], limit_test_batches=1)
        trainer.test(module, datamodule=each["datamodule"], verbose=False)
        caches.append(cfg.analysis_cache.batches[0].logit_diffs)
    torch.testing.assert_close(caches[1], caches[0])
    assert compiler.ran == 1
    core = torch.compile(make(("core",)).module, backend=compiler)
    with pytest.raises(it.ConfigurationError, match="composed without the Lightning adapter"):
        OurTrainer(**QUIET).fit(core)
