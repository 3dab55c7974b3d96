"""Everything that a module and its backend compute for one batch, by what it is called in messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interpretune.activations.inputs import ModelInputs
from interpretune.backends.interventions import Scale, generate_with_interventions, run_with_interventions
from interpretune.latents.latent_model import activation_name
from interpretune.replay.rows import LatentRows
from interpretune.testing.comparing import logits_in
from interpretune.testing.hook_points import offered
from interpretune.testing.rule import RuleSkipped
from interpretune.testing.workbench import Bench


def capability_runs(bench: Bench, module: Any, models: Sequence[Any], at: str) -> Mapping[str, Callable[[], Any]]:
    """Runs by what they are called in messages, of capabilities that the backend declares; ``at`` is a hook point."""
    backend, batch = module.backend, bench.even_batch()
    inputs, names = ModelInputs.from_batch(batch), [activation_name(item) for item in models]
    change = [Scale(at=at, factor=0.0)]

    def steered() -> Any:
        return generate_with_interventions(
            module.backend, module.it_generate, batch, change, models, max_new_tokens=2, do_sample=False
        )

    runs: dict[tuple[str, ...], dict[str, Callable[[], Any]]] = {
        ("splice",): {"a spliced run": lambda: backend.run_spliced(inputs, models, record=names)},
        ("gradients",): {
            "gradients": lambda: backend.gradients(inputs, models, lambda logits: logits[:, 3].sum(), names)
        },
        ("ablation",): {"an ablation": lambda: ablate(backend, backend.prefill(inputs, models), names[0])},
        ("splice", "interventions"): {
            "an intervention": lambda: run_with_interventions(backend, inputs, change, models),
            "a steered generation": steered,
        },
    }
    offered = (some for needed, some in runs.items() if bench.capabilities >= set(needed))
    return {what: run for some in offered for what, run in some.items()}


def ablate(backend: Any, prefill: Any, name: str) -> Any:
    """Set an active latent of each row to 0.

    Raises:
        RuleSkipped: No latent is active.
    """
    return backend.ablate(prefill, LatentRows.single(name, active_latents(prefill.latents[name])))


def active_latents(latents: Tensor) -> Tensor:
    """The first active latent of each row of ``[batch, d_sae]`` that has one: pairs of row and latent, ``[n, 2]``.

    Ablating any other latent changes nothing, and a backend need not run for it.
    """
    rows = (latents != 0).any(dim=-1).nonzero().flatten()
    if not len(rows):
        raise RuleSkipped("no latent of the kit's dictionary is active with this model: choose another seed")
    return torch.stack([rows, (latents[rows] != 0).long().argmax(dim=-1)], dim=-1)


NEW_TOKENS = 2


def results_of(bench: Bench, module: Any, models: Sequence[Any]) -> Iterator[tuple[str, Tensor]]:
    """Run the bench's even rows in every way that the backend offers."""
    batch = module.batch_to_device(bench.even_batch())
    yield "logits of the forward", logits_in(module(**batch), "the forward")
    generated = module.it_generate(batch, max_new_tokens=NEW_TOKENS, do_sample=False)
    yield "generated tokens", generated.sequences
    yield "logits of generated tokens", generated.logits[0]
    yield "ids of special tokens", module.backend.special_token_ids()
    yield from backend_results(bench, module, models)


def backend_results(bench: Bench, module: Any, models: Sequence[Any]) -> Iterator[tuple[str, Tensor]]:
    """Those of the backend alone; arguments as for ``results_of``."""
    inputs, backend = ModelInputs.from_batch(module.batch_to_device(bench.even_batch())), module.backend
    yield "logits of the backend's run", backend.run(inputs)
    yield "logits of the backend's forward", backend.forward(inputs, {})
    logits, cache = backend.run_with_cache(inputs, offered(bench))
    yield "logits of a run with a cache", logits
    yield from ((f"activations at {name}", value) for name, value in cache.items())
    captured = backend.capture(inputs, offered(bench)[1:3])
    yield from ((f"captured activations at {name}", value) for name, value in captured.items())
    names = [activation_name(item) for item in models]
    if "splice" in bench.capabilities:
        run = backend.run_spliced(inputs, models, record=names)
        yield "logits of a spliced run", run.answer_logits
        yield from ((f"latents {name}", value) for name, value in run.activations.items())
    if "gradients" in bench.capabilities:
        run, gradients = backend.gradients(inputs, models, lambda logits: logits[:, 3].sum(), names)
        yield "logits of a run with gradients", run.answer_logits
        yield from ((f"gradients at {name}", value) for name, value in gradients.items())
    if "ablation" in bench.capabilities:
        prefill = backend.prefill(inputs, models)
        yield "logits of a prefill", prefill.logits
        yield "logits of an ablation", ablate(backend, prefill, names[0])
    if "interventions" in bench.capabilities:
        change = [Scale(at=offered(bench)[1], factor=0.5)]
        yield "logits of an intervention", run_with_interventions(backend, inputs, change)
