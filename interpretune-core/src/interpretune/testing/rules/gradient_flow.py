"""The rule of gradients at all hook points: nothing cuts the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interpretune.activations.hook_names import EMBED, LOGITS
from interpretune.testing import reference
from interpretune.testing.comparing import TOLERANCE, same
from interpretune.testing.hook_points import offered
from interpretune.testing.rule import RuleBroken, expect, rule
from interpretune.testing.workbench import Bench

Run = Callable[[Mapping[str, Callable[[Tensor], Tensor]]], Tensor]


@rule(stack=True, after=["edits-are-made"])
def gradients_at_every_hook_point(bench: Bench) -> None:
    """Gradients reach what an edit adds at every hook point, and pass through it to the embedding."""
    inputs, names = bench.even_inputs(), offered(bench)

    def run(edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensor:
        return bench.backend.forward(inputs, edits)

    chosen = [list(dict.fromkeys([EMBED, name] if EMBED in names and name != LOGITS else [name])) for name in names]
    for name, points, wanted in zip(names, chosen, _plain_gradients(bench, chosen), strict=True):
        found = _gradients(run, points)
        for point in points:
            through = f" through an edit at {name}" if point != name else ""
            expect(point in found, f"no gradient arrives at {point}{through}", "that of the plain model")
            same(found[point], wanted[point], f"gradients at {point}{through}")
    _check_parameters(bench)


def _check_parameters(bench: Bench) -> None:
    """Edits that change nothing, at any name, let gradients pass to all parameters below."""
    module = bench.new_session().module
    module.model.requires_grad_(True)
    names = list(module.backend.hook_point_names())
    clean = _of_parameters(bench, module, [])
    size = max(float(item.abs().max()) for item in clean)

    def cut(chosen: Sequence[str]) -> bool:
        found = _of_parameters(bench, module, chosen)
        return any(float((a - b).abs().max()) > TOLERANCE * size for a, b in zip(found, clean, strict=True))

    if cut(names):
        culprits = [name for name in names if cut([name])]
        raise RuleBroken(
            f"an edit that changes nothing at {', '.join(culprits[:4]) or 'all names together'} changes the gradients "
            "of parameters",
            "the gradients of a run without it",
        )


def _of_parameters(bench: Bench, module: Any, names: Sequence[str]) -> list[Tensor]:
    """Gradients of all parameters in a run with edits that change nothing; 0 where none arrives."""
    parameters = [item for item in module.model.parameters() if item.is_floating_point()]
    with torch.enable_grad(), module.backend.hooked(dict.fromkeys(names, lambda x: x)):
        objective = _objective(module.backend.run_model(bench.even_inputs(), None))
        if not objective.requires_grad:
            return [torch.zeros_like(item) for item in parameters]
        found = torch.autograd.grad(objective, parameters, allow_unused=True)
    return [torch.zeros_like(item) if grad is None else grad for item, grad in zip(parameters, found, strict=True)]


def _plain_gradients(bench: Bench, chosen: Sequence[Sequence[str]]) -> list[dict[str, Tensor]]:
    """Those of the plain model, with edits at other hook points in each case; no case reaches into another."""
    cases = [_Added(points) for points in chosen]
    hooks = [list(case.edits.items()) for case in cases]
    with torch.enable_grad():
        _objective(reference.logits_of_each(bench.reference, bench.even_rows, hooks).flatten(0, 1)).backward()
    return [case.gradients() for case in cases]


def _gradients(run: Run, points: Sequence[str]) -> dict[str, Tensor]:
    """Gradients of a sum of the last logits at what is added at hook points; those that arrive."""
    added = _Added(points)
    with torch.enable_grad():
        objective = _objective(run(added.edits))
        if objective.requires_grad:
            objective.backward()
    return added.gradients()


class _Added:
    """Edits that add zeros, at which gradients arrive."""

    def __init__(self, points: Sequence[str]) -> None:
        self.leaves: dict[str, Tensor] = {}
        self.edits = {point: self._adding(point) for point in points}

    def _adding(self, point: str) -> Callable[[Tensor], Tensor]:
        def add(activations: Tensor) -> Tensor:
            self.leaves[point] = torch.zeros_like(activations).requires_grad_()
            return activations + self.leaves[point]

        return add

    def gradients(self) -> dict[str, Tensor]:
        """Those that arrived, by hook point."""
        return {point: leaf.grad for point, leaf in self.leaves.items() if leaf.grad is not None}


def _objective(logits: Tensor) -> Tensor:
    """A sum of the last logits of all rows."""
    return (logits[:, -1] * torch.linspace(-1, 1, logits.shape[-1]).to(logits)).sum()
