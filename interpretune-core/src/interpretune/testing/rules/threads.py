"""The rule of threads: whoever works at the same time, everybody gets their own numbers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interpretune.activations.hook_names import RESID_POST, in_layer
from interpretune.activations.inputs import ModelInputs
from interpretune.latents.latent_model import activation_name
from interpretune.session.session import ITSession, it_session_end
from interpretune.testing.comparing import logits_in, same
from interpretune.testing.hook_points import LOWER, latents, offers
from interpretune.testing.rule import RuleBroken, RuleSkipped, expect, rule
from interpretune.testing.workbench import Bench

PATIENCE = 0.3
"""Seconds that a thread waits inside for the other one, which may have to wait outside for its turn."""

LONGEST = 60.0
"""Seconds after which threads are taken to wait for each other for ever."""

Run = Callable[[Any, Mapping[str, Tensor]], Tensor]


@rule(stack=True, after=["sessions-stay-apart", "generation-agrees", "cache-is-a-copy", "padding-backend"])
def threads_stay_apart(bench: Bench) -> None:
    """Two threads that work at the same time, in two sessions or in one, get their own numbers."""
    sessions = [bench.new_session() for _ in range(2)]
    batches = [bench.padded([row], "left") for row in (bench.rows[0], bench.rows[2])]
    runs = _runs(bench)
    pairs = {"two sessions": sessions, "one session": [sessions[0], sessions[0]]}
    wanted = {
        what: [run(session.module, batch) for session, batch in zip(sessions, batches, strict=True)]
        for what, run in runs.items()
    }
    for where, pair in pairs.items():
        for what, run in runs.items():
            found = _at_the_same_time(pair, batches, run, f"{what} in {where}")
            for i, result in enumerate(found):
                same(result, wanted[what][i], f"{what} of thread {i + 1} beside another thread in {where},")
    for session in sessions:
        it_session_end(**session)


def _runs(bench: Bench) -> Mapping[str, Run]:
    """What threads do, by what comes out."""
    point = in_layer(LOWER, RESID_POST)
    runs: dict[str, Run] = {
        "logits of the forward": lambda module, batch: logits_in(module(**batch), "the forward"),
        "logits of a generation": lambda module, batch: torch.stack(
            module.it_generate(batch, max_new_tokens=2, do_sample=False).logits
        ),
        "logits of the backend": lambda module, batch: module.backend.run(ModelInputs.from_batch(batch)),
    }
    if not offers(bench.backend, point):
        return runs

    def edited(module: Any, batch: Mapping[str, Tensor]) -> Tensor:
        size = 1.0 + batch["input_ids"].shape[1] % 3  # another edit for each batch
        return module.backend.forward(ModelInputs.from_batch(batch), {point: lambda x: x * size})

    runs["cached activations"] = lambda module, batch: module.backend.run_with_cache(
        ModelInputs.from_batch(batch), [point]
    )[1][point]
    runs["logits with an edit"] = edited
    if "splice" in bench.capabilities:
        models = latents(bench)[:1]
        name = activation_name(models[0])
        runs["spliced latents"] = lambda module, batch: module.backend.run_spliced(
            ModelInputs.from_batch(batch), models, record=[name]
        ).activations[name]
    return runs


def _at_the_same_time(
    sessions: Sequence[ITSession], batches: Sequence[Mapping[str, Tensor]], run: Run, what: str
) -> list[Tensor]:
    """Run all at once: each waits for the others when it has entered the model, and when it is about to leave it."""
    gates = [threading.Barrier(len(batches)) for _ in range(2)]
    local, found = threading.local(), dict[int, Tensor | BaseException]()

    def meet(number: int) -> None:
        """Wait for the other thread, once in each run; or go on, where threads take turns."""
        if number in local.__dict__.setdefault("met", set()) or gates[0].broken:
            return
        local.met.add(number)
        with contextlib.suppress(threading.BrokenBarrierError):
            gates[number].wait(PATIENCE)

    def work(i: int) -> None:
        try:
            with torch.no_grad():
                found[i] = run(sessions[i].module, batches[i])
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is reported below
            found[i] = error

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(batches))]
    with _gated(sessions, batches[0], meet):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONGEST)
    expect(not any(thread.is_alive() for thread in threads), f"{what}: two threads wait for ever", "results for both")
    for error in found.values():
        if isinstance(error, BaseException):
            raise RuleBroken(
                f"{what}: a thread beside another one fails: {type(error).__name__}: {error}", "what it gets alone"
            ) from error
    return [item for _, item in sorted(found.items()) if isinstance(item, Tensor)]


@contextlib.contextmanager
def _gated(sessions: Sequence[ITSession], batch: Mapping[str, Tensor], meet: Callable[[int], None]) -> Iterator[None]:
    """Hooks on the first and the last module of each model that a forward runs."""
    with contextlib.ExitStack() as stack:
        for module in {id(session.module): session.module for session in sessions}.values():
            first, last = _ends(module, batch)
            stack.callback(first.register_forward_pre_hook(lambda *_: meet(0)).remove)
            stack.callback(last.register_forward_hook(lambda *_: meet(1)).remove)
        yield


def _ends(module: Any, batch: Mapping[str, Tensor]) -> tuple[nn.Module, nn.Module]:
    """The first and the last module of a session's model that a forward runs."""
    fired: list[nn.Module] = []
    with torch.no_grad(), contextlib.ExitStack() as stack:
        for part in module.model.modules():
            if next(part.children(), None) is None:
                stack.callback(part.register_forward_hook(lambda part, *_: fired.append(part)).remove)
        module(**batch)
    if not fired:
        raise RuleSkipped("a forward comes by no module of torch, so that threads cannot be made to meet in one")
    return fired[0], fired[-1]
