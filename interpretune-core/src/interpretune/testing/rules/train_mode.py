"""The rule of edits while a model is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from interpretune.backends.interventions import SetTo, run_with_interventions
from interpretune.testing import reference
from interpretune.testing.comparing import same
from interpretune.testing.hook_points import edited_logits, latents, logits_turned_at, offered, turned
from interpretune.testing.rule import RuleSkipped, rule
from interpretune.testing.workbench import Bench


@rule(stack=True, after=["edits-are-made"])
def edits_in_train_mode(bench: Bench) -> None:
    """In train mode, too, edits, latent models and interventions change the logits as those of the plain model."""
    module = bench.new_session(model_folder=_without_dropout(bench)).module.train()
    backend, inputs = module.backend, bench.even_inputs()
    first, second = (backend.forward(inputs, {}).detach() for _ in range(2))
    if not torch.allclose(first, second, atol=1e-4):
        raise RuleSkipped("in train mode the model draws, also without the dropout of its config.json")
    turned_at = logits_turned_at(bench)
    for name in offered(bench):  # with gradients, as a training step runs
        found = backend.forward(inputs, {name: turned})
        same(found, turned_at[name], f"logits with an edit at {name} in train mode")
    with torch.no_grad():
        _check_the_rest(bench, backend)


def _check_the_rest(bench: Bench, backend: Any) -> None:
    inputs = bench.even_inputs()
    if "splice" in bench.capabilities:
        models = latents(bench)
        runs = [reference.spliced_run(bench.reference, models, row, bench.special) for row in bench.even_rows]
        found = backend.run_spliced(inputs, models).answer_logits
        same(found, torch.stack([run[0] for run in runs]), "logits of a spliced run in train mode")
    if "interventions" in bench.capabilities:
        point, value = offered(bench)[1], torch.linspace(-1, 1, bench.width)
        found = run_with_interventions(backend, inputs, [SetTo(at=point, value=value)])
        (wanted,) = edited_logits(bench, [[(point, value.expand_as)]])
        same(found, wanted[:, -1], f"logits with an intervention at {point} in train mode")


def _without_dropout(bench: Bench) -> Path:
    """The tiny model with all dropout set to 0 in its configuration."""

    def still(about: dict[str, Any]) -> dict[str, Any]:
        return {name: 0.0 for name, value in about.items() if "drop" in name and isinstance(value, float)}

    return bench.edited_model("without-dropout", still, "its dropout")
