"""Padding invariance: rows in a padded batch give what they give alone, for padding on either side.

An adapter is held against itself here, so that these rules fail for what padding does and for nothing else. With
learned positions it is held against the plain model: a shift of all positions is the same with padding and without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from interpretune.activations.inputs import ModelInputs
from interpretune.models.padding import answer_positions
from interpretune.testing.comparing import logits_in, same
from interpretune.testing.hook_points import latents
from interpretune.testing.reference import logits_of
from interpretune.testing.rule import expect, rule
from interpretune.testing.rules.step import NEW_TOKENS, check_generated
from interpretune.testing.workbench import Bench

SIDES = ("left", "right")


def _batches(bench: Bench) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for side in SIDES:
        yield f"padding on the {side}", bench.padded(bench.rows, side)


def _alone(bench: Bench) -> list[dict[str, Tensor]]:
    return [bench.padded([row], "left") for row in bench.rows]


def invariant(bench: Bench, what: str, run: Callable[[ModelInputs], Tensor]) -> None:
    """Compare ``[batch, ...]`` of padded batches with the same of each row alone."""
    wanted = torch.cat([run(ModelInputs.from_batch(batch)) for batch in _alone(bench)])
    for how, batch in _batches(bench):
        same(run(ModelInputs.from_batch(batch)), wanted, f"{what}, {how}")


def real_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """``[batch, pos, ...]`` to the real tokens of all rows, ``[n, ...]``."""
    return values[mask.bool()]


@rule(stack=True, after=["one-row"])
@torch.no_grad()
def padding_forward(bench: Bench) -> None:
    """Logits of the forward are those of the unpadded rows, at every real token."""
    wanted = torch.cat([logits_in(bench.module(**batch), "the forward")[0] for batch in _alone(bench)])
    for how, batch in _batches(bench):
        logits = logits_in(bench.module(**batch), "the forward")
        same(real_tokens(logits, batch["attention_mask"]), wanted, f"logits of the forward, {how}")


@rule(stack=True, after=["one-row"])
@torch.no_grad()
def padding_generation(bench: Bench) -> None:
    """Generated tokens and their logits are those of the unpadded rows."""
    alone = []
    for batch in _alone(bench):
        result = bench.module.it_generate(batch, max_new_tokens=NEW_TOKENS, do_sample=False)
        new = result.sequences[0, batch["input_ids"].shape[1] :].tolist()
        alone.append((new, torch.stack([step[0] for step in result.logits])))
    for how, batch in _batches(bench):
        together = bench.module.it_generate(batch, max_new_tokens=NEW_TOKENS, do_sample=False)
        width = batch["input_ids"].shape[1]
        for i, (tokens, wanted) in enumerate(alone):
            new = together.sequences[i, width:][: len(tokens)].tolist()
            expect(new == tokens, f"row {i} goes on with the tokens {new}, {how}", f"{tokens}, as the row alone does")
            found = torch.stack([step[i] for step in together.logits[: len(wanted)]])
            same(found, wanted, f"logits of the new tokens of row {i}, {how}")


@rule(stack=True, after=["one-row"])
@torch.no_grad()
def padding_backend(bench: Bench) -> None:
    """Logits and cached activations of the backend are those of the unpadded rows."""
    backend = bench.backend
    invariant(bench, "logits of the backend's run", backend.run)
    point = latents(bench)[0].hook_point

    def logits(inputs: ModelInputs) -> Tensor:
        return real_tokens(backend.forward(inputs, {}), inputs.attention_mask)

    def cached(inputs: ModelInputs) -> Tensor:
        return real_tokens(backend.run_with_cache(inputs, [point])[1][point], inputs.attention_mask)

    invariant(bench, "logits of the backend's forward at real tokens", logits)
    invariant(bench, f"activations at {point} at real tokens", cached)


@rule(after=["padding-forward", "padding-generation", "padding-backend"])
@torch.no_grad()
def positions_count_real_tokens(bench: Bench) -> None:
    """With learned positions, too, rows give what the plain model gives: positions count real tokens, from 0."""
    folder = bench.other_model("learned positions", bench.suite.write_model_with_learned_positions)
    module = bench.new_session(model_folder=folder).module

    def forward(inputs: ModelInputs) -> Tensor:
        output = module(input_ids=inputs.tokens, attention_mask=inputs.attention_mask)
        rows = torch.arange(len(inputs), device=inputs.tokens.device)
        return logits_in(output, "the forward")[rows, answer_positions(inputs.attention_mask)]

    reference = bench.suite.reference_model(folder)
    wanted = torch.stack([logits_of(reference, row)[-1] for row in bench.rows])
    alone = [("alone", row, batch) for row, batch in zip(wanted.split(1), _alone(bench), strict=True)]
    for how, expected, batch in (*alone, *((how, wanted, batch) for how, batch in _batches(bench))):
        for what, run in (("forward", forward), ("backend", module.backend.run)):
            found = run(ModelInputs.from_batch(batch))
            same(found, expected, f"logits of the {what} of a model with learned positions, {how}")
    for how, batch in _batches(bench):
        generated = module.it_generate(batch, max_new_tokens=NEW_TOKENS, do_sample=False)
        width, what = batch["input_ids"].shape[1], f"generation of a model with learned positions, {how}"
        check_generated(bench, generated, bench.rows, width, what, reference)
