"""finetuning-scheduler with schedules that name parameters as TransformerLens does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import lazy_loader
import pytest
import torch
from lightning.pytorch import Callback, Trainer

import interpretune as it
from interpretune_lightning import finetuning_schedule
from tests.sessions import make_session, stack_options

fts = lazy_loader.load("finetuning_scheduler")  # which takes a second, in every process that collects tests
PHASES = {
    0: {"params": [r"blocks\.2\.mlp\..*", r"ln_final\..*"], "max_transition_epoch": 1},
    1: {"params": [r"blocks\.1\.attn\.W_[QK]"], "lr": 1e-4, "max_transition_epoch": 4},
}
THAWED = [
    {*(f"blocks.2.mlp.{name}" for name in ("W_in", "b_in", "W_out", "b_out", "W_gate")), "ln_final.w", "ln_final.b"},
    {"blocks.1.attn.W_Q", "blocks.1.attn.W_K"},
]


@pytest.fixture
def make(tmp_path: Path):
    def make(stack: str = "hooked", kind: str = "gpt2", **settings) -> it.ITSession:
        adapters, options = stack_options(stack)
        optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}
        return make_session(
            tmp_path / kind,
            kind,
            adapters=("lightning", *adapters),
            module_cls=it.ClassificationModule,
            **{"optimizer_init": optimizer, **options, **settings},
        )

    return make


class Snapshots(Callback):
    """Weights at the end of each epoch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.weights.append({name: item.detach().clone() for name, item in pl_module.named_parameters()})


@pytest.mark.filterwarnings("ignore:Final phase max_transition_epoch:UserWarning")  # it says what any last phase gets
@pytest.mark.parametrize(("stack", "kind"), [("bridge", "llama"), ("bridge", "gpt2"), ("hooked", "gpt2")])
def test_phases_thaw_what_transformer_lens_s_names_stand_for(make, tmp_path, quiet, stack, kind):
    session = make(stack, kind)
    module = session["model"]
    real = {name: names for found in module.hook.it_name_parameters(module=module) for name, names in found.items()}
    # no model has all of these
    wanted = [{each for name in THAWED[phase] if name in real for each in real[name]} for phase in (0, 1)]
    schedule = finetuning_schedule(module, PHASES)
    assert [set(schedule[phase]["params"]) for phase in (0, 1)] == wanted
    assert schedule[1]["lr"] == 1e-4
    before = {name: item.detach().clone() for name, item in module.named_parameters()}
    snapshots = Snapshots()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=4,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path / "lightning",
        callbacks=[
            fts.FinetuningScheduler(ft_schedule=schedule, epoch_transitions_only=True),
            fts.FTSCheckpoint(monitor="val_loss"),
            snapshots,
        ],
    )
    trainer.fit(**session)
    # a bridge's joint matrix is a view of its pieces, and changes with them
    own = {name for name in before if "qkv" not in name}
    changed = [{name for name in own if not torch.equal(weights[name], before[name])} for weights in snapshots.weights]
    assert changed[0] == wanted[0]
    assert changed[-1] == wanted[0] | wanted[1]


@pytest.mark.filterwarnings("ignore:Final phase max_transition_epoch:UserWarning")  # it says what any last phase gets
def test_its_checkpoints_load_and_training_goes_on_in_their_phase(make, tmp_path, quiet):
    def fit(session: it.ITSession, run: str, epochs: int, *callbacks: Callback, **options) -> Trainer:
        phases = {0: PHASES[0], 1: {**PHASES[1], "max_transition_epoch": epochs}}
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path / run,
            callbacks=[
                fts.FinetuningScheduler(
                    ft_schedule=finetuning_schedule(session["model"], phases), epoch_transitions_only=True
                ),
                fts.FTSCheckpoint(tmp_path / run / "checkpoints", monitor="val_loss"),
                *callbacks,
            ],
        )
        trainer.fit(**session, weights_only=True, **options)
        return trainer

    first = fit(make("bridge"), "first", 2)
    best = first.checkpoint_callback.best_model_path
    other = make("bridge")
    [found] = first.validate(**other, ckpt_path=best, verbose=False, weights_only=True)
    assert found["val_loss"] == pytest.approx(first.checkpoint_callback.best_model_score.item())
    saved = torch.load(best, weights_only=True)["state_dict"]
    found_again = {name: item for name, item in other["model"].named_parameters() if "qkv" not in name}
    assert all(torch.equal(item, saved[name]) for name, item in found_again.items())

    last = tmp_path / "last.ckpt"
    cut = make("bridge")
    fit(cut, "cut", 2).save_checkpoint(last)
    resumed, snapshots = make("bridge"), Snapshots()
    fit(resumed, "resumed", 3, snapshots, ckpt_path=last)
    [after] = snapshots.weights
    before = torch.load(last, weights_only=True)["state_dict"]
    names = resumed["model"].hook.it_name_parameters(module=resumed["model"])[0]
    wanted = {each for phase in THAWED for name in phase if name in names for each in names[name]}
    assert {name for name in after if "qkv" not in name and not torch.equal(after[name], before[name])} == wanted


def scheduled(session: it.ITSession, *callbacks: Callback, **options) -> it.ITSession:
    """The session with a schedule of two phases among the Trainer's callbacks."""
    phases = {number: PHASES[number]["params"] for number in (0, 1)}
    schedule = fts.FinetuningScheduler(ft_schedule=finetuning_schedule(session["model"], phases), **options)
    session["model"].it_cfg.trainer_kwargs = {"callbacks": [schedule, *callbacks]}
    return session


STOP = it.EarlyStopping(monitor="val_loss", min_delta=100.0, patience=1)


def test_early_stop_ends_the_phases_of_a_schedule_under_core_s_names(make, tmp_path, quiet):
    snapshots, run = Snapshots(), tmp_path / "run"
    session = scheduled(make(), snapshots)
    module = session["model"]
    real = {name: names for found in module.hook.it_name_parameters(module=module) for name, names in found.items()}
    wanted = [{each for name in THAWED[phase] if name in real for each in real[name]} for phase in (0, 1)]
    before = {name: item.detach().clone() for name, item in module.named_parameters()}
    cfg = it.LoopConfig(max_epochs=9, run_dir=run, early_stopping=STOP, progress=False)
    result = it.fit(**session, loop_cfg=cfg)
    changed = [{name for name in before if not torch.equal(each[name], before[name])} for each in snapshots.weights]
    assert changed == [wanted[0], wanted[0], wanted[0] | wanted[1]]
    assert result.stopped_early
    assert (result.checkpoint, result.best_checkpoint.parent) == (
        run / "checkpoints" / "last.ckpt",
        run / "checkpoints",
    )
    tested = it.test(**session, loop_cfg=it.LoopConfig(progress=False))  # where the schedule has no business
    assert set(tested.metrics) == {"test_loss", "test_accuracy"}


@pytest.mark.parametrize(
    ("options", "callbacks", "loop", "message"),
    [
        ({}, [], {"early_stopping": STOP}, "LoopConfig.run_dir is None: there is no folder for checkpoints"),
        ({"epoch_transitions_only": True}, [], {"early_stopping": STOP, "run_dir": "run"}, "True. would drop it"),
        ({}, ["FTSEarlyStopping"], {"early_stopping": STOP, "run_dir": "run"}, "one early stop, and there a"),
    ],
)
def test_loops_that_a_schedule_does_not_go_with(make, options, callbacks, loop, message):
    session = scheduled(make(), *(getattr(fts, name)("val_loss") for name in callbacks), **options)
    with pytest.raises(it.ConfigurationError, match=message):
        it.fit(**session, loop_cfg=it.LoopConfig(progress=False, **loop))


def test_real_names_and_the_rest(make):
    module = make("core")["model"]
    schedule = finetuning_schedule(module, {0: [r"model\.transformer\.ln_f\..*"], 1: [".*"]})
    assert schedule[0]["params"] == ["model.transformer.ln_f.weight", "model.transformer.ln_f.bias"]
    both = [name for phase in schedule.values() for name in phase["params"]]
    assert sorted(both) == sorted(name for name, _ in module.named_parameters())


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ({0: [r"blocks\.2\.attn\.W_X"]}, r"matches no parameter; it must match a whole name. Near names: .*W_"),
        ({0: ["("]}, "is no regular expression"),
        ({1: [".*"]}, "number them 0, 1, 2"),
        ({0: ".*"}, "write a list of names"),
        ({0: [".*"], 1: ["ln_final.w"]}, "Phase 1 of the schedule thaws nothing"),
    ],
)
def test_schedules_that_make_no_sense(make, phases, message):
    with pytest.raises(it.ConfigurationError, match=message):
        finetuning_schedule(make()["model"], phases)


def test_frozen_parameters_are_not_thawed(make):
    module = make(optimizer_init=None)["model"]
    with pytest.raises(it.ConfigurationError, match="matches frozen parameters only .*set freeze=False"):
        finetuning_schedule(module, {0: ["ln_final.*"]})


def test_the_package_is_named(make, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(it.ConfigurationError, match=r'pip install "interpretune-lightning\[fts\]"'):
        finetuning_schedule(make("core")["model"], {0: [".*"]})
