"""Everything that a module and its backend compute for one batch, by what it is called in messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from interpretune.activations.inputs import ModelInputs
from interpretune.backends.interventions import Scale, run_with_interventions
from interpretune.latents.latent_model import activation_name
from interpretune.testing.capability_runs import ablate
from interpretune.testing.comparing import logits_in
from interpretune.testing.places import offered
from interpretune.testing.workbench import Bench

NEW_TOKENS = 2


def results_of(bench: Bench, module: Any, models: Sequence[Any]) -> Iterator[tuple[str, Tensor]]:
    """Run the bench's even rows in every way that the backend offers.

    Args:
        bench: The workbench.
        module: The module to run.
        models: Latent models to splice in, where the module is.
    """
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
