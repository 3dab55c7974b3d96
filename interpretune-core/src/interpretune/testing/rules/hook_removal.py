"""Rules of what is left on a model: nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from interpretune.testing.capability_runs import capability_runs
from interpretune.testing.comparing import same
from interpretune.testing.model_hooks import hooks_on, left_behind
from interpretune.testing.places import latents, offered
from interpretune.testing.rule import expect, rule
from interpretune.testing.workbench import Bench


@rule(
    stack=True,
    after=["nothing-global-changes", "cache-agrees", "gradients-agree", "ablation-agrees", "interventions-agree"],
)
def no_hooks_left(bench: Bench) -> None:
    """No hook stays on the model after a run of any kind."""
    module = bench.new_session().module  # its own: what is left behind would spoil other rules
    backend, models, inputs = module.backend, latents(bench), bench.even_inputs()
    backend.forward(inputs, {})  # libraries may add hooks of their own in the first forward
    before = hooks_on(module)
    runs: dict[str, Callable[[], Any]] = {
        "a forward": lambda: module(**bench.even_batch()),
        "a generation": lambda: module.it_generate(bench.even_batch(), max_new_tokens=2, do_sample=False),
        "a run with a cache": lambda: backend.run_with_cache(inputs, offered(bench)),
        "a capture": lambda: backend.capture(inputs, offered(bench)[:2]),
        **capability_runs(bench, module, models, offered(bench)[3]),
    }
    for what, run in runs.items():
        run()
        left = left_behind(before, module)
        expect(not left, f"after {what} there are still {left}", "no hook that was not there before")
    same(backend.run(inputs), bench.backend.run(inputs), "logits after all of these")
