"""Rules of frameworks: the loops run the user's steps, train what may be trained, and keep their files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from interpretune.errors import ConfigurationError
from interpretune.plugins.declaration import Level
from interpretune.session.session import ITSession, it_session_end
from interpretune.system.torch_state import eval_mode
from interpretune.testing import reference
from interpretune.testing.comparing import same
from interpretune.testing.rule import RuleSkipped, expect, rule, some
from interpretune.testing.step_notes import KEPT_MOST, NotingModule, notes_of, other_modes
from interpretune.testing.user_classes import calls_of
from interpretune.testing.workbench import ADAM, BATCH_SIZE, N_BATCHES, N_TRAINING_ROWS, Bench
from interpretune.training.config import LoopConfig, LoopResult
from interpretune.training.loops import fit, predict, test, validate


@rule(stack=True, levels=[Level.framework], after=["forward-agrees"])
def loops_evaluate(bench: Bench) -> None:
    """The loops validate, test and predict see every row once, and give the plain model's losses and predictions."""
    session = bench.new_session()
    result = predict(**session, loop_cfg=LoopConfig(progress=False))
    rows = [torch.tensor(row) for row in session.datamodule.dataset["validation"]["input_ids"]]
    answers = session.module.answer_token_ids.cpu()
    with torch.no_grad():
        wanted = torch.stack([reference.logits_of(bench.reference, row)[-1, answers] for row in rows])
    loss = cross_entropy(wanted, torch.tensor(session.datamodule.dataset["validation"]["labels"]))
    same(torch.cat([batch["logits"] for batch in result.predictions]), wanted, "predictions of the loop `predict`")
    for name, loop, step in (("validate", validate, "validation_step"), ("test", test, "test_step")):
        calls_of(session.module).clear()
        metrics = loop(**session, loop_cfg=LoopConfig(progress=False)).metrics
        calls = calls_of(session.module).count(step)
        expect(calls == N_BATCHES, f"the loop `{name}` ran {step} {calls} times", f"{N_BATCHES}, once for each batch")
        key = f"{'val' if name == 'validate' else name}_loss"
        expect(key in metrics, f"the loop `{name}` gave the metrics {dict(metrics)}", key)
        same(torch.tensor(metrics[key]), loss, f"{key} of the loop `{name}`, the mean of all rows")
    it_session_end(**session)


@rule(stack=True, levels=[Level.framework], after=["loops-evaluate"])
def loop_trains(bench: Bench) -> None:
    """The loop fit sees every training row once an epoch, changes the weights, and leaves the session usable."""
    session = bench.new_session(optimizer_init=ADAM, freeze=False)
    before = {name: item.detach().clone() for name, item in session.module.named_parameters()}
    calls_of(session.module).clear()
    result = fit(**session, loop_cfg=LoopConfig(max_epochs=2, limit_val_batches=0, progress=False, seed=0))
    steps = 2 * N_TRAINING_ROWS // BATCH_SIZE
    seen = calls_of(session.module).count("training_step")
    expect(seen == steps, f"two epochs ran training_step {seen} times", f"{steps}, once for each batch")
    expect(result.global_step == steps, f"the loop says that it made {result.global_step} steps", f"{steps}")
    trained = {name: item for name, item in session.module.named_parameters() if item.requires_grad}
    unchanged = [name for name, item in trained.items() if torch.equal(item, before[name])]
    expect(
        trained and not unchanged,
        f"{len(unchanged)} of {len(trained)} trainable parameters are as before: {', '.join(unchanged[:3])}",
        "weights that training changes",
    )
    expect(torch.is_grad_enabled(), "grad mode is off after the training", "the grad mode as it was")
    metrics = test(**session, loop_cfg=LoopConfig(progress=False)).metrics
    expect("test_loss" in metrics, f"after the training the loop `test` gives {dict(metrics)}", "test_loss")
    it_session_end(**session)


RATE = 0.05
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": RATE}}
"""Its steps can be computed again from gradients alone."""

TRAINING_BATCHES = N_TRAINING_ROWS // BATCH_SIZE


def trained(bench: Bench, *, check: Callable[[Any], None] = lambda module: None, **options: Any) -> ITSession:
    """A session after a training, its result in ``bench.notes``; skipped where the framework refuses a field."""
    session = bench.new_session(module_cls=NotingModule, optimizer_init=SGD, freeze=False)
    check(session.module)
    with refusals_skip(options):
        bench.notes["fit"] = fit(
            **session, loop_cfg=LoopConfig(**{"progress": False, "limit_val_batches": 0, **options})
        )
    return session


@contextlib.contextmanager
def refusals_skip(options: Any) -> Iterator[None]:
    """Skip the rule where the framework says in words that it does not know a field that is set."""
    try:
        yield
    except ConfigurationError as error:
        if not any(name in str(error) for name in options):
            raise
        raise RuleSkipped(f"the framework refuses what the rule is about: {error}") from error


@rule(stack=True, levels=[Level.framework], after=["loop-trains"])
def loop_ends_at_max_steps(bench: Bench) -> None:
    """The loop fit makes no more optimizer steps than max_steps, in the middle of an epoch and over several."""
    wanted: Sequence[dict[str, Any]] = (
        {"max_epochs": 3, "max_steps": 2},
        {"max_epochs": -1, "max_steps": TRAINING_BATCHES + 1},
    )
    for options in wanted:
        session = trained(bench, **options)
        most, seen = options["max_steps"], len(notes_of(session.module, "training_step"))
        told = bench.notes["fit"].global_step
        expect(seen == most, f"with {_words(options)} training_step ran {seen} times", f"{most} times")
        expect(told == most, f"with {_words(options)} the loop says that it made {told} steps", f"{most}")
        it_session_end(**session)


@rule(stack=True, levels=[Level.framework], after=["loop-ends-at-max-steps"])
def loop_accumulates(bench: Bench) -> None:
    """With accumulate_grad_batches an optimizer step is made of the mean gradient of so many batches."""
    together = TRAINING_BATCHES - 1
    session = trained(bench, accumulate_grad_batches=together)
    steps, told = 2, bench.notes["fit"].global_step
    about = f"{TRAINING_BATCHES} batches with accumulate_grad_batches={together}"
    expect(told == steps, f"{about} made {told} optimizer steps", f"{steps}: the last of the batch that is left")
    batches = [note.batch for note in notes_of(session.module, "training_step")]
    _same_weights(bench, session, [batches[:together], batches[together:]], together, f"after {about}")
    it_session_end(**session)


def _same_weights(bench: Bench, session: ITSession, steps: Sequence[Sequence[Any]], divisor: int, what: str) -> None:
    """Compare a session's weights with plain gradient descent over the same batches, one loss after the other."""
    twin = bench.new_session(module_cls=NotingModule, freeze=False)
    module: Any = twin.module
    parameters = {name: item for name, item in module.named_parameters() if item.requires_grad}
    before = {name: item.detach().clone() for name, item in parameters.items()}
    for batches in steps:
        module.zero_grad()
        with eval_mode(module), torch.enable_grad():
            for batch in batches:
                (cross_entropy(module.class_logits(batch), batch["labels"]) / divisor).backward()
        with torch.no_grad():
            for item in parameters.values():
                if item.grad is not None:
                    item.sub_(RATE * item.grad)
    now = dict(session.module.named_parameters())
    for name, item in parameters.items():
        wanted = item.detach() - before[name]
        same(now[name].detach() - before[name].to(now[name].device), wanted, f"change of {name} {what}", tolerance=1e-2)
    it_session_end(**twin)


@rule(stack=True, levels=[Level.framework], after=["loop-ends-at-max-steps"])
def loop_clips_gradients(bench: Bench) -> None:
    """With gradient_clip_val no optimizer step is larger than that, by norm and by value."""
    bound = 1e-3
    sizes: dict[str, Callable[[Tensor], Tensor]] = {"norm": torch.linalg.vector_norm, "value": lambda x: x.abs().max()}
    for algorithm, size in sizes.items():
        before: dict[str, Tensor] = {}
        options: dict[str, Any] = {"max_steps": 1, "gradient_clip_val": bound, "gradient_clip_algorithm": algorithm}
        session = trained(bench, check=lambda module: before.update(_weights(module)), **options)  # noqa: B023
        now = _weights(session.module)
        moved = torch.cat([(now[name] - before[name]).flatten() for name in before])
        found = float(size(moved)) / RATE
        expect(
            bound / 2 < found < bound * 1.01,
            f"one step of gradient descent with {_words(options)} follows a gradient of the {algorithm} {found:.3g}",
            f"a gradient that was cut to {bound:g}",
        )
        it_session_end(**session)


def _weights(module: Any) -> dict[str, Tensor]:
    return {name: item.detach().double().clone() for name, item in module.named_parameters() if item.requires_grad}


@rule(stack=True, levels=[Level.framework], after=["loop-trains"])
def loop_keeps_limits(bench: Bench) -> None:
    """The loops read no more batches than the limits of LoopConfig say, as numbers and as shares, in fit too."""
    for train, val in ((2, 1), (0.5, 0.4)):
        session = trained(bench, limit_train_batches=train, limit_val_batches=val, max_epochs=2)
        steps = [note.step for note in notes_of(session.module)]
        first = steps.index("training_step") if "training_step" in steps else len(steps)
        found = steps[first:]  # trainers may try a batch of the validation before they begin
        wanted = ["training_step", "training_step", "validation_step"] * 2
        about = f"two epochs of fit with limit_train_batches={train} and limit_val_batches={val}"
        expect(found == wanted, f"{about} ran {_counted(found)}", _counted(wanted))
        it_session_end(**session)
    session = bench.new_session(module_cls=NotingModule)
    loops: dict[str, tuple[Callable[..., LoopResult], str]] = {
        "val": (validate, "validation_step"),
        "test": (test, "test_step"),
        "predict": (predict, "predict_step"),
    }
    for name, (loop, step) in loops.items():
        for limit, wanted_batches in ((2, 2), (0.4, 1), (None, N_BATCHES)):
            notes_of(session.module).clear()
            options: dict[str, Any] = {f"limit_{name}_batches": limit}
            with refusals_skip(options):
                loop(**session, loop_cfg=LoopConfig(progress=False, **options))
            seen = len(notes_of(session.module, step))
            about = f"the loop `{loop.__name__}` with {_words(options)}"
            expect(seen == wanted_batches, f"{about} ran {step} {seen} times", f"{wanted_batches} times")
    it_session_end(**session)


@rule(stack=True, levels=[Level.framework], after=["loop-trains"])
def validation_in_eval_mode(bench: Bench) -> None:
    """Validation inside fit runs in evaluation mode and without gradients; training goes on in its modes."""
    session = trained(bench, max_epochs=2, limit_val_batches=1)
    steps = notes_of(session.module)
    first = next(note for note in steps if note.step == "training_step")
    seen = [note for note in steps if note.step == "validation_step"]
    expect(len(seen) > 1, f"two epochs with a validation ran validation_step {len(seen)} times", "once an epoch")
    for note in seen:
        training = [path for path, mode in note.modes.items() if mode]
        expect(not training, f"in a validation inside fit {some(training)} are in train mode", "evaluation mode")
        expect(not note.gradients, "in a validation inside fit gradients are on", "gradients that are off")
    expect(any(first.modes.values()), "in training the whole model is in evaluation mode", "train mode")
    for note in steps:
        if note.step == "training_step":
            others = other_modes(first.modes, note.modes)
            expect(not others, f"after a validation training goes on with {some(others)}", "the modes as before")
            expect(note.gradients, "after a validation training goes on without gradients", "gradients that are on")
    it_session_end(**session)


@rule(stack=True, levels=[Level.framework], after=["loop-trains"])
def loop_lets_batches_go(bench: Bench) -> None:
    """Loops hold on to no batch and no loss: after some batches, those of the last one may be alive and no others."""
    session = trained(bench, max_epochs=3, limit_val_batches=N_BATCHES)
    loops = {"test_step": test, "validation_step": validate}
    for loop in loops.values():
        loop(**session, loop_cfg=LoopConfig(progress=False))
    for step in ("training_step", *loops):
        most = max((note.alive for note in notes_of(session.module, step)), default=0)
        expect(
            most <= KEPT_MOST,
            f"at a {step} {most} tensors of earlier batches and their losses are alive",
            f"at most {KEPT_MOST}, those of the last batch: keep numbers, or copies of what is needed",
        )
    it_session_end(**session)


def _words(options: Any) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def _counted(steps: Sequence[str]) -> str:
    return ", ".join(steps) or "no step"


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
    return bench.notes[TRAINED]


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


@rule(stack=True, after=["forward-agrees"])
def model_stays_trainable(bench: Bench) -> None:
    """With freeze=False all weights of the model require a gradient and get one; with freeze=True none does."""
    frozen = bench.new_session(freeze=True)
    left = [name for name, item in frozen.module.model.named_parameters() if item.requires_grad]
    expect(not left, f"with freeze=True {some(left)} require a gradient", "none")
    it_session_end(**frozen)
    session = bench.new_session(freeze=False)
    module: Any = session.module
    parameters = {name: item for name, item in module.model.named_parameters() if item.is_floating_point()}
    fixed = [name for name, item in parameters.items() if not item.requires_grad]
    trainable = sum(item.numel() for item in parameters.values() if item.requires_grad)
    wanted = sum(item.numel() for item in bench.reference.parameters())
    expect(
        trainable >= wanted,
        f"with freeze=False {len(fixed)} of {len(parameters)} parameters of the model are frozen, {some(fixed)}; "
        f"{trainable} numbers can be trained",
        f"at least the {wanted} of the plain model: core freezes the model where the user wants it",
    )
    with torch.enable_grad():
        batch = {**bench.even_batch(), "labels": torch.tensor([0, 1], device=module.device)}
        loss = module.class_logits(batch).square().sum()
        expect(loss.requires_grad, "logits of the forward know no gradients where they are on", "logits that do")
        loss.backward()
    without = [name for name, item in parameters.items() if item.requires_grad and item.grad is None]
    expect(not without, f"no gradient reaches {some(without)}", "a gradient for each parameter that the forward uses")
    it_session_end(**session)
