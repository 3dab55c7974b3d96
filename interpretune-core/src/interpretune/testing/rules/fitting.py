"""Rules of training: a framework follows the fields of ``LoopConfig``, or refuses them in words."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from interpretune.errors import ConfigurationError
from interpretune.plugins.declaration import Level
from interpretune.session.session import ITSession, it_session_end
from interpretune.system.torch_state import eval_mode
from interpretune.testing.comparing import same
from interpretune.testing.rule import RuleSkipped, expect, rule
from interpretune.testing.step_notes import KEPT_MOST, NotingModule, notes_of, other_modes
from interpretune.testing.workbench import BATCH_SIZE, N_ROWS, N_TRAINING_ROWS, Bench
from interpretune.training.config import LoopConfig, LoopResult
from interpretune.training.start import fit, predict, test, validate

RATE = 0.05
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": RATE}}
"""Its steps can be computed again from gradients alone."""

TRAINING_BATCHES = N_TRAINING_ROWS // BATCH_SIZE
EVALUATION_BATCHES = -(-N_ROWS // BATCH_SIZE)


def trained(bench: Bench, *, check: Callable[[Any], None] = lambda module: None, **options: Any) -> ITSession:
    """A session after a training; its result is in ``bench.notes``.

    Args:
        bench: The workbench.
        check: Called with the module before the training.
        **options: Fields of ``LoopConfig``.

    Raises:
        RuleSkipped: The framework refuses one of these fields by its name.
    """
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
        for limit, wanted_batches in ((2, 2), (0.4, 1), (None, EVALUATION_BATCHES)):
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
        expect(not training, f"in a validation inside fit {_some(training)} are in train mode", "evaluation mode")
        expect(not note.gradients, "in a validation inside fit gradients are on", "gradients that are off")
    expect(any(first.modes.values()), "in training the whole model is in evaluation mode", "train mode")
    for note in steps:
        if note.step == "training_step":
            others = other_modes(first.modes, note.modes)
            expect(not others, f"after a validation training goes on with {_some(others)}", "the modes as before")
            expect(note.gradients, "after a validation training goes on without gradients", "gradients that are on")
    it_session_end(**session)


@rule(stack=True, levels=[Level.framework], after=["loop-trains"])
def loop_lets_batches_go(bench: Bench) -> None:
    """Loops hold on to no batch and no loss: after some batches, those of the last one may be alive and no others."""
    session = trained(bench, max_epochs=3, limit_val_batches=EVALUATION_BATCHES)
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


def _some(names: Sequence[str]) -> str:
    shown = 3
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
