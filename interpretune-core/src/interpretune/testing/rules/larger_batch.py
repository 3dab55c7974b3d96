"""The rule of batches of many rows: each row gives what it gives unpadded, also where a batch takes another way."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from interpretune.activations.inputs import ModelInputs, Points
from interpretune.backends.interventions import SetTo, run_with_interventions
from interpretune.latents.latent_model import activation_name
from interpretune.replay.rows import LatentRows
from interpretune.testing.comparing import logits_in, same
from interpretune.testing.hook_points import latents
from interpretune.testing.rule import rule
from interpretune.testing.rules.padding import SIDES
from interpretune.testing.workbench import Bench

N_ROWS = 17
"""Rows of a batch, of many lengths."""

FEW = 4
"""Rows that are run together without padding."""

STEP = 3
"""Tokens between two lengths."""

Run = Callable[[ModelInputs], Tensor]
"""Gives ``[batch, ...]``."""


@rule(
    stack=True,
    after=["padding-forward", "padding-splicing", "padding-gradients", "padding-ablation", "padding-interventions"],
)
def larger_batches_agree(bench: Bench) -> None:
    """In a padded batch of many rows each row gives what it gives unpadded: answers and edits are at its own tokens."""
    rows = _rows(bench)
    batches = {side: ModelInputs.from_batch(bench.padded(rows, side)) for side in SIDES}
    few = _of_one_length(rows)
    unpadded = [ModelInputs.from_batch(bench.padded([rows[i] for i in group], "left")) for group in few]
    back = torch.tensor([i for group in few for i in group]).argsort()
    for what, run in _runs(bench):
        wanted = torch.cat([run(inputs).detach() for inputs in unpadded])
        for side, inputs in batches.items():
            same(run(inputs), wanted[back.to(wanted.device)], f"{what}, {N_ROWS} rows padded on the {side}")


def _of_one_length(rows: Sequence[Tensor]) -> list[list[int]]:
    """Indices of up to ``FEW`` rows of one length, which need no padding; each row is in one group."""
    lengths = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    groups = [list(group) for _, group in itertools.groupby(lengths, key=lambda i: len(rows[i]))]
    return [group[start : start + FEW] for group in groups for start in range(0, len(group), FEW)]


def _rows(bench: Bench) -> list[Tensor]:
    """The rows of the data set, each cut at another place."""
    whole = [torch.tensor(row) for row in bench.session.datamodule.dataset["validation"]["input_ids"]]
    lengths = [max(3, (len(whole[i % len(whole)]) - (5 * i) % 11) // STEP * STEP) for i in range(N_ROWS)]
    return [whole[i % len(whole)][:length] for i, length in enumerate(lengths)]


def _runs(bench: Bench) -> Iterator[tuple[str, Run]]:
    backend, point = bench.backend, latents(bench)[0].hook_point

    def forward(inputs: ModelInputs) -> Tensor:
        logits = logits_in(bench.module(input_ids=inputs.tokens, attention_mask=inputs.attention_mask), "the forward")
        return inputs.answers.of(logits)

    def before(inputs: ModelInputs) -> Tensor:
        points = Points(inputs.answers.examples, inputs.answer_positions - 1)
        return backend.forward(inputs, {}, points)

    def edited(inputs: ModelInputs) -> Tensor:
        def edit(activations: Tensor) -> Tensor:
            changed = activations.clone()
            points = inputs.answers
            changed[points.examples, points.positions] = activations.flip(-1)[points.examples, points.positions]
            changed[points.examples, points.positions - 2] = 0.0
            return changed

        return backend.forward(inputs, {point: edit}, inputs.answers)

    def cached(inputs: ModelInputs) -> Tensor:
        logits, cache = backend.run_with_cache(inputs, [point])
        return torch.cat([logits, inputs.answers.of(cache[point])], dim=-1)

    with torch.no_grad():
        yield "logits of the forward at the answer", forward
        yield "logits of the backend's run", backend.run
        yield "logits of the backend at the token before the answer", before
        yield f"logits with an edit at {point}, at two tokens of each row", edited
        yield f"logits and activations at {point}, at the answer", cached
    yield from _runs_of_capabilities(bench)


def _runs_of_capabilities(bench: Bench) -> Iterator[tuple[str, Run]]:
    backend, models = bench.backend, latents(bench)
    name = activation_name(models[0])
    value = torch.linspace(-1, 1, bench.width)

    def spliced(inputs: ModelInputs) -> Tensor:
        run = backend.run_spliced(inputs, models, record=[name])
        return torch.cat([run.answer_logits, inputs.answers.of(run.activations[name])], dim=-1)

    def gradients(inputs: ModelInputs) -> Tensor:
        run, found = backend.gradients(inputs, models, lambda logits: logits[:, 5].sum(), [name])
        return torch.cat([run.answer_logits.detach(), inputs.answers.of(found[name])], dim=-1)

    def ablated(inputs: ModelInputs) -> Tensor:
        prefill = backend.prefill(inputs, models)
        latent = (prefill.latents[name] != 0).long().argmax(dim=-1)
        pairs = torch.stack([torch.arange(len(inputs), device=latent.device), latent], dim=-1)
        return backend.ablate(prefill, LatentRows.single(name, pairs))

    def steered(inputs: ModelInputs, at: Callable[[ModelInputs], Any]) -> Tensor:
        change = SetTo(at=models[0].hook_point, value=value, positions=at(inputs))
        return run_with_interventions(backend, inputs, [change])

    runs: tuple[tuple[str, str, Run], ...] = (
        ("splice", "logits and latents of a spliced run, at the answer", spliced),
        ("gradients", "logits and gradients at latents, at the answer", gradients),
        ("ablation", "logits with an active latent of each row ablated", ablated),
        ("interventions", "logits with an intervention at the answer", lambda x: steered(x, lambda _: "answer")),
        (
            "interventions",
            "logits with an intervention at one position of each row",
            lambda x: steered(x, lambda inputs: inputs.answer_positions - 1),
        ),
    )
    for capability, what, run in runs:
        if capability in bench.capabilities:
            with torch.set_grad_enabled(capability == "gradients"):
                yield what, run
