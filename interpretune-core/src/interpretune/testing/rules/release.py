"""Rules of memory: what was done with a batch, and with a session, is let go."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from interpretune.activations.inputs import ModelInputs
from interpretune.analysis.modes import AnalysisCfg, AnalysisMode
from interpretune.analysis.runner import run_analysis
from interpretune.session.session import ITSession, it_init, it_session_end
from interpretune.testing.backend_runs import capability_runs
from interpretune.testing.hook_points import latents, offered
from interpretune.testing.rule import RuleBroken, expect, rule
from interpretune.testing.workbench import Bench

ROUNDS = 4
"""Batches between two looks at what is alive."""

LOOKS = 6
"""Looks of which each finds more before something counts as kept: caches with less than 24 entries are full by then."""

SESSIONS = 2


@rule(stack=True, after=["no-hooks-left", "cache-is-a-copy", "analysis-keeps-train-mode"])
def batches_are_let_go(bench: Bench) -> None:
    """No tensor stays alive for each batch, whatever was done with it: forwards, generations, steps, analyses, logs."""
    session = bench.new_session()
    runs = _runs(bench, session)
    with _old_objects_aside():
        if _growth(runs, looks=2) >= ROUNDS and _keeps_growing(runs):
            kept = [f"{count} after {ROUNDS} times {what}" for what, count in _growing(runs).items()]
            raise RuleBroken(
                f"more tensors are alive with each batch: {', '.join(kept) or f'{ROUNDS} after {ROUNDS} batches'}",
                "as many as before: keep numbers, or nothing of a batch",
            )
    it_session_end(**session)


Runs = Mapping[str, Callable[[int], Any]]


def _keeps_growing(runs: Runs) -> bool:
    """Whether more tensors stay alive when caches are full: first those runs are repeated that let some stay."""
    some = {what: runs[what] for what in _growing(runs)}
    return _growth(some) >= ROUNDS or _growth(runs) >= ROUNDS


def _growing(runs: Runs) -> dict[str, int]:
    """Runs after which more tensors stay alive, and how many."""
    each = {what: _growth({what: run}, looks=2) for what, run in runs.items()}
    return {what: count for what, count in each.items() if count >= ROUNDS}


@contextlib.contextmanager
def _old_objects_aside() -> Iterator[None]:
    """Keep the collector from going through all that was there before; who has done so himself, has all stay aside."""
    kept_aside = gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not kept_aside:
            gc.unfreeze()


def _growth(runs: Runs, looks: int = LOOKS) -> int:
    """How many more tensors are alive at each look, at least; a look that finds few more is the last one."""
    alive: list[int] = []
    if not runs:
        return 0
    while len(alive) < 2 or (len(alive) < looks and alive[-1] - alive[-2] >= ROUNDS):
        for number in range(ROUNDS):
            for run in runs.values():
                run(number)
        gc.collect()
        alive.append(sum(issubclass(type(item), Tensor) for item in gc.get_objects()))
    return min(later - earlier for earlier, later in itertools.pairwise(alive))


def _runs(bench: Bench, session: ITSession) -> dict[str, Callable[[int], Any]]:
    """What is done with a batch, by what it is called; batches are of one shape and differ in a token."""
    module: Any = session.module
    backend, models, names = module.backend, latents(bench), offered(bench)

    counted = itertools.count(4)  # past the ids of special tokens

    def batch(_: int) -> dict[str, Tensor]:
        made = bench.even_batch()
        made["input_ids"][:, 1] = next(counted) % bench.vocab_size
        return made

    def step(number: int) -> Any:
        labels = torch.tensor([0, 1], device=module.device)
        module.run_step("predict_step", module.batch_to_device({**batch(number), "labels": labels}), number)

    runs: dict[str, Callable[[int], Any]] = {
        "a forward": lambda number: module(**batch(number)),
        "a generation": lambda number: module.it_generate(batch(number), max_new_tokens=2, do_sample=False),
        "a step": step,
        "a log call": lambda number: module.log("a_number", torch.tensor(float(number))),
        "a run with a cache": lambda number: backend.run_with_cache(ModelInputs.from_batch(batch(number)), names),
    }

    def repeated(what: str, number: int) -> None:
        capability_runs(bench, module, models, names[0])[what]()

    for what in capability_runs(bench, module, models, names[0]):
        runs[what] = functools.partial(repeated, what)
    cfg = AnalysisMode.clean_no_sae
    runs["an analysis of a batch"] = lambda number: run_analysis(
        module, session.datamodule, AnalysisCfg(mode=cfg), limit_batches=1
    )
    return runs


@rule(stack=True, after=["sessions-stay-apart"])
def sessions_are_let_go(bench: Bench) -> None:
    """After its end nothing of a session is alive that nobody else holds: neither its module nor its model."""
    for attempt in range(SESSIONS):
        alive = _parts_alive_after(bench)
        expect(
            not alive,
            f"after the end of session {attempt + 1}, when nobody else holds it, its {' and its '.join(alive)} "
            f"{'is' if len(alive) == 1 else 'are'} alive",
            "nothing of it: keep nothing of a session on the adapter, on a class or in a module of Python",
        )


def _parts_alive_after(bench: Bench) -> list[str]:
    session = ITSession(bench.session_cfg())
    it_init(**session)
    module: Any = session.module
    batch = bench.even_batch()
    with torch.no_grad():
        module(**batch)
    module.it_generate(batch, max_new_tokens=2, do_sample=False)
    module.backend.run(ModelInputs.from_batch(batch))
    parts = {"module": module, "model": module.model, "data module": session.datamodule, "backend": module.backend}
    watched = {name: weakref.ref(part) for name, part in parts.items()}
    it_session_end(**session)
    del session, module, batch, parts
    gc.collect()
    return [name for name, part in watched.items() if part() is not None]
