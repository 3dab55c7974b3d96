"""Rules of what is left on a model: nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from interpretune.analysis.inputs import ModelInputs
from interpretune.analysis.interventions import Scale, run_with_interventions
from interpretune.analysis.latent_model import activation_name
from interpretune.analysis.replay.rows import LatentRows
from interpretune.testing.bench import Bench
from interpretune.testing.comparing import same
from interpretune.testing.model_hooks import hooks_on, left_behind
from interpretune.testing.places import latents, offered
from interpretune.testing.rule import expect, rule


@rule(
    stack=True,
    after=["nothing-global-changes", "cache-agrees", "gradients-agree", "ablation-agrees", "interventions-agree"],
)
def no_hooks_left(bench: Bench) -> None:
    """No hook stays on the model after a run of any kind."""
    module = bench.new_session().module  # its own: what is left behind would spoil other rules
    backend, models, inputs = module.backend, latents(bench), ModelInputs.from_batch(bench.even_batch())
    names = [activation_name(item) for item in models]
    backend.forward(inputs, {})  # libraries may add hooks of their own in the first forward
    before = hooks_on(module)

    def ablation() -> None:
        prefill = backend.prefill(inputs, models)
        pairs = torch.tensor([[0, 0], [1, 3]], device=inputs.tokens.device)
        backend.ablate(prefill, LatentRows.single(names[0], pairs))

    def generation() -> None:
        module.it_generate(bench.even_batch(), max_new_tokens=2, do_sample=False)

    place = offered(bench)[3]
    runs: dict[str, Callable[[], Any]] = {
        "a forward": lambda: module(**bench.even_batch()),
        "a generation": generation,
        "a run with a cache": lambda: backend.run_with_cache(inputs, offered(bench)),
        "a capture": lambda: backend.capture(inputs, offered(bench)[:2]),
    }
    of_capability: dict[str, tuple[str, Callable[[], Any]]] = {
        "splice": ("a spliced run", lambda: backend.run_spliced(inputs, models, record=names)),
        "gradients": (
            "gradients",
            lambda: backend.gradients(inputs, models, lambda logits: logits[:, 3].sum(), names),
        ),
        "ablation": ("an ablation", ablation),
        "interventions": (
            "an intervention",
            lambda: run_with_interventions(backend, inputs, [Scale(at=place, factor=0.0)]),
        ),
    }
    runs |= dict(of_capability[name] for name in of_capability if name in bench.capabilities)
    for what, run in runs.items():
        run()
        left = left_behind(before, module)
        expect(not left, f"after {what} there are still {left}", "no hook that was not there before")
    same(backend.run(inputs), bench.backend.run(inputs), "logits after all of these")
