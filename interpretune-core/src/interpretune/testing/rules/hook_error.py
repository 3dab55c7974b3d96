"""The rule of errors in the middle of a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from interpretune.activations.hook_names import RESID_POST, in_layer
from interpretune.latents.latent_model import activation_name
from interpretune.testing.capability_runs import ablate, capability_runs
from interpretune.testing.model_hooks import hooks_on, left_behind
from interpretune.testing.places import UPPER, offered
from interpretune.testing.rule import RuleBroken, expect, rule
from interpretune.testing.tiny_latents import RandomDictionary
from interpretune.testing.workbench import Bench


class _StopError(Exception):
    """Ends a run in its middle."""


class _Stopping(RandomDictionary):
    """A dictionary that stops whoever decodes with it, as long as it is told to."""

    stops = True

    def decode(self, latents: Tensor) -> Tensor:
        """Stop, or decode."""
        return stop(latents) if self.stops else super().decode(latents)


def stop(activations: Tensor) -> Tensor:
    """An edit that fails."""
    raise _StopError


@rule(stack=True, after=["canonical-names-exist", "sessions-stay-apart", "nothing-global-changes"])
def errors_leave_no_hooks(bench: Bench) -> None:
    """An error in the middle of a run of any kind arrives, and no hook stays on the model."""
    module = bench.new_session().module  # its own: what is left behind would spoil other rules
    module.backend.forward(bench.even_inputs(), {})  # libraries may add hooks in the first
    before = hooks_on(module)
    for what, run in _failing_runs(bench, module):
        try:
            run()
        except _StopError:
            left = left_behind(before, module)
        else:
            raise RuleBroken(f"an error in {what} did not arrive", "the error, as it was raised")
        expect(not left, f"after an error in {what} there are still {left}", "none")


def _failing_runs(bench: Bench, module: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    names, inputs = offered(bench), bench.even_inputs()
    for name in (names[0], names[len(names) // 2], names[-1]):
        yield f"an edit at {name}", functools.partial(module.backend.forward, inputs, {name: stop})
    place = in_layer(UPPER, RESID_POST)
    if place not in names:
        return
    model = _Stopping(place, bench.width, seed=bench.seed, linear=False).to(module.device)
    yield from capability_runs(bench, module, [model], names[0]).items()
    if "ablation" in bench.capabilities:
        model.stops = False
        prefill = module.backend.prefill(inputs, [model])
        model.stops = True
        yield "an ablation after a prefill", lambda: ablate(module.backend, prefill, activation_name(model))
