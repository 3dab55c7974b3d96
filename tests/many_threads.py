"""Work in several threads that begin together and change places as often as Python lets them."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from interpretune.analysis import AnalysisBackend, LatentModel, LatentRows, ModelInputs, Scale, run_with_interventions
from tests.tiny_latents import activations_of

WAIT = 60
"""Seconds after which a test that hangs fails."""


@contextlib.contextmanager
def switching_often() -> Iterator[None]:
    """Let threads take turns after each few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def run_together(*works: Callable[[], Any]) -> list[Any]:
    """Run each piece of work in a thread of its own, all begun at once; what they return, or the error of one."""
    results: list[Any] = [None] * len(works)
    errors: list[BaseException] = []
    begin = threading.Barrier(len(works), timeout=WAIT)

    def run(index: int) -> None:
        try:
            begin.wait()
            results[index] = works[index]()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(works))]
    with switching_often():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]
    return results


def three_calls(
    backend: AnalysisBackend, inputs: ModelInputs, latent_models: Sequence[LatentModel], plain: Callable[[], Tensor]
) -> list[Callable[[], Tensor]]:
    """A plain forward, an intervention, and an ablation of all active latents of the first latent model."""
    name = activations_of(latent_models[0])

    def intervention() -> Tensor:
        with torch.no_grad():
            return run_with_interventions(backend, inputs, [Scale(at="layers.1.resid_mid", factor=0.5)])

    def ablation() -> Tensor:
        prefill = backend.prefill(inputs, latent_models)
        return backend.ablate(prefill, LatentRows.single(name, (prefill.latents[name] > 0).nonzero()))

    return [plain, intervention, ablation]


def all_from_eight_threads(calls: Sequence[Callable[[], Tensor]], rounds: int = 2) -> None:
    """Make the calls from eight threads, each in another order, and compare with what one thread alone gets."""
    expected = [call() for call in calls]

    def work(first: int) -> Callable[[], None]:
        def run() -> None:
            for step in range(rounds * len(calls)):
                which = (first + step) % len(calls)
                torch.testing.assert_close(calls[which](), expected[which], rtol=0, atol=1e-6)

        return run

    run_together(*map(work, range(8)))
    for call, before in zip(calls, expected, strict=True):
        torch.testing.assert_close(call(), before, rtol=0, atol=1e-6)


def plain_batch(session: Any) -> dict[str, Tensor]:
    """The first test batch without labels."""
    batch = dict(next(iter(session.datamodule.test_dataloader())))
    del batch["labels"]
    return batch
