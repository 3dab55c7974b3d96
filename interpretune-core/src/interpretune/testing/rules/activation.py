"""Rules of activations: what is cached and edited at hook points is what the plain model has there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from interpretune.activations.hook_names import LOGITS
from interpretune.testing import reference
from interpretune.testing.comparing import same
from interpretune.testing.places import offered
from interpretune.testing.plain_edits import logits_turned_at, turned
from interpretune.testing.rule import expect, rule
from interpretune.testing.workbench import Bench


@rule(stack=True, after=["errors-leave-no-hooks", "logits-where-asked"])
@torch.no_grad()
def cache_agrees(bench: Bench) -> None:
    """Cached activations are those of the plain Hugging Face model at each canonical place."""
    names = offered(bench)
    wanted = [reference.activations_of(bench.reference, row, names) for row in bench.even_rows]
    logits, cache = bench.backend.run_with_cache(bench.even_inputs(), names)
    captured = bench.backend.capture(bench.even_inputs(), names)
    for name in names:
        expected = torch.stack([row[name] for row in wanted])
        same(cache.get(name), expected, f"activations at {name}")
        same(captured.get(name), expected, f"captured activations at {name}")
    answers = torch.stack([reference.logits_of(bench.reference, row)[-1] for row in bench.even_rows])
    same(logits, answers, "logits of a run with a cache")


@rule(stack=True, after=["cache-agrees"])
@torch.no_grad()
def cache_is_a_copy(bench: Bench) -> None:
    """Who changes returned activations or logits in place changes nothing of the model or of later results."""
    names, inputs, backend = offered(bench), bench.even_inputs(), bench.backend

    def captured(*given: Any) -> tuple[None, Any]:
        return None, backend.capture(*given)

    runs: Mapping[str, Callable[..., tuple[Any, Any]]] = {"run_with_cache": backend.run_with_cache, "capture": captured}
    for what, run in runs.items():
        _, first = run(inputs, names)
        kept = {name: value.clone() for name, value in first.items()}
        clean = backend.run(inputs)
        kept_logits = clean.clone()
        for value in first.values():
            value.zero_()
        _, second = run(inputs, names)
        clean.zero_()
        for name in names:
            same(second[name], kept[name], f"activations at {name}, after those of an earlier {what} were set to 0")
        same(backend.run(inputs), kept_logits, f"logits, after results of an earlier {what} were set to 0")


@rule(stack=True, after=["cache-agrees"])
@torch.no_grad()
def edits_are_made(bench: Bench) -> None:
    """An edit at a canonical place changes the logits exactly as it changes those of the plain model."""
    clean = bench.backend.forward(bench.even_inputs(), {})
    for name in offered(bench):
        found = bench.backend.forward(bench.even_inputs(), {name: turned})
        expect(
            not torch.allclose(found, clean, atol=1e-6), f"an edit at {name} changes no logit", "logits that it changes"
        )
        same(found, logits_turned_at(bench, name), f"logits with an edit at {name}")


@rule(stack=True, after=["cache-agrees"])
@torch.no_grad()
def edits_do_not_reach_back(bench: Bench) -> None:
    """An edit leaves what it was given, and everything that comes before it, as it was."""
    names = [name for name in offered(bench) if name != LOGITS]
    given: list[Tensor] = []

    def edit(activations: Tensor) -> Tensor:
        given[:] = [activations, activations.clone()]
        return torch.zeros_like(activations)

    _, clean = bench.backend.run_with_cache(bench.even_inputs(), names)
    for index in range(1, len(names)):
        place, below = names[index], names[:index]
        held: dict[str, Tensor] = {}
        keep = {name: _hold(held, name) for name in below}
        bench.backend.forward(bench.even_inputs(), {**keep, place: edit})
        expect(torch.equal(*given), f"an edit at {place} changed in place what it was given", "a tensor left alone")
        for name in below:
            same(held[name], clean[name], f"activations at {name}, held in a forward with an edit at {place}")


def _hold(held: dict[str, Tensor], name: str) -> Callable[[Tensor], Tensor]:
    def hold(activations: Tensor) -> Tensor:
        held[name] = activations
        return activations

    return hold
