"""Rules of forwards, generation and steps, where nothing is padded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from interpretune.activations.inputs import ModelInputs, Points
from interpretune.errors import DataError
from interpretune.plugins.declaration import Level
from interpretune.testing.comparing import logits_in, same, shape
from interpretune.testing.reference import logits_of
from interpretune.testing.rule import RuleBroken, expect, rule
from interpretune.testing.workbench import Bench

NEW_TOKENS = 4


@rule(stack=True, after=["session-runs"])
@torch.no_grad()
def results_arrive(bench: Bench) -> None:
    """What a step, a forward, a generation or a log call gives reaches whoever called it."""
    module, batch = bench.module, bench.even_batch()
    loader = bench.session.datamodule.test_dataloader()
    moved = module.batch_to_device(next(iter(loader)))
    expect(moved is not None, "batch_to_device gave None", "the batch")
    wanted = {"input_ids", "attention_mask", "labels"}
    expect(wanted <= set(moved), f"batch_to_device gave {sorted(moved)}", f"a batch with {', '.join(sorted(wanted))}")
    result = module.run_step("predict_step", moved, 0)
    expect(
        result is module.last_prediction,
        f"the user's predict_step returned a dictionary, and the caller got {_about(result)}",
        "the very object that the step returned (a wrapper ends with `return (yield)`)",
    )
    shape(logits_in(module(**batch), "the forward"), (2, bench.even_rows.shape[1], bench.vocab_size), "the forward")
    generated = module.it_generate(batch, max_new_tokens=NEW_TOKENS, do_sample=False)
    for name in ("sequences", "logits"):
        expect(hasattr(generated, name), f"it_generate gave {_about(generated)} without {name}", "sequences and logits")
    module.log("a_number", 2.5)
    expect(module.logged_metrics.get("a_number") == 2.5, "a logged number is not in logged_metrics", "2.5")
    logits = module.backend.run(ModelInputs.from_batch(batch))
    shape(logits, (2, bench.vocab_size), "the backend's run")


@rule(stack=True, after=["sessions-stay-apart"])
@torch.no_grad()
def forward_agrees(bench: Bench) -> None:
    """Logits of the forward are those of the plain Hugging Face model."""
    found = logits_in(bench.module(**bench.even_batch()), "the forward")
    wanted = torch.stack([logits_of(bench.reference, row) for row in bench.even_rows])
    same(found, wanted, "logits of rows without padding")


@rule(stack=True, after=["sessions-stay-apart"])
@torch.no_grad()
def generation_agrees(bench: Bench) -> None:
    """Greedy generation gives the tokens and logits of a loop over the plain Hugging Face model."""
    batch = bench.even_batch()
    found = bench.module.it_generate(batch, max_new_tokens=NEW_TOKENS, do_sample=False)
    check_generated(bench, found, list(bench.even_rows), batch["input_ids"].shape[1], "rows without padding")


@torch.no_grad()
def check_generated(
    bench: Bench, found: Any, rows: list[Tensor], width: int, what: str, model: Any | None = None
) -> None:
    """Compare generated tokens and their logits with greedy decoding of each row alone.

    Args:
        bench: The workbench.
        found: What ``it_generate`` gave.
        rows: The prompts.
        width: Slots of each prompt in the batch.
        what: Names the batch in the message.
        model: The plain model; None: that of the tiny model.

    Raises:
        RuleBroken: They differ.
    """
    expect(isinstance(found.logits, tuple), f"{what}: logits are {_about(found.logits)}", "a tuple, one for each token")
    new = found.sequences.shape[1] - width
    expect(
        found.sequences.shape[0] == len(rows) and 0 < new <= NEW_TOKENS and len(found.logits) == new,
        f"{what}: sequences {list(found.sequences.shape)} and {len(found.logits)} logits for prompts of {width} slots",
        f"sequences [{len(rows)}, {width} + new], with up to {NEW_TOKENS} new tokens and logits for each",
    )
    for i, row in enumerate(rows):
        tokens, logits = greedy(bench, row, model)
        got = found.sequences[i, width:][: len(tokens)].tolist()
        expect(got == tokens, f"{what}: row {i} goes on with the tokens {got}", f"{tokens}, as the row alone does")
        steps = torch.stack([step[i] for step in found.logits[: len(tokens)]])
        same(steps, logits, f"{what}: logits of the new tokens of row {i}")


def greedy(bench: Bench, row: Tensor, model: Any | None = None) -> tuple[list[int], Tensor]:
    """Tokens and logits ``[new, vocab]`` of plain greedy decoding until the end token, a whole forward for each."""
    plain = bench.reference if model is None else model
    eos = bench.session.datamodule.tokenizer.eos_token_id
    tokens: list[int] = []
    logits: list[Tensor] = []
    while len(tokens) < NEW_TOKENS and eos not in tokens:
        logits.append(logits_of(plain, torch.cat([row, torch.tensor(tokens, dtype=torch.long)]))[-1])
        tokens.append(int(logits[-1].argmax()))
    return tokens, torch.stack(logits)


@rule(stack=True, after=["sessions-stay-apart"])
@torch.no_grad()
def logits_where_asked(bench: Bench) -> None:
    """Logits at chosen points are those at the same points of all logits."""
    inputs = ModelInputs.from_batch(bench.even_batch())
    length = inputs.tokens.shape[1]
    everywhere = bench.backend.forward(inputs, {})
    for examples, positions in (((0, 1), (length - 1, length - 1)), ((0, 0, 1, 1), (0, 3, length - 2, 1))):
        points = Points(*(torch.tensor(ids, device=inputs.tokens.device) for ids in (examples, positions)))
        found = bench.backend.forward(inputs, {}, points)
        same(found, points.of(everywhere), f"logits at examples {examples} and positions {positions}")
    same(bench.backend.run(inputs), everywhere[:, -1], "logits at the answer positions")


@rule(stack=True, after=["forward-agrees", "logits-where-asked", "generation-agrees", "results-arrive"])
@torch.no_grad()
def one_row(bench: Bench) -> None:
    """A batch of one row has a batch axis everywhere, and gives what the row gives among others."""
    module, row = bench.module, bench.rows[0]
    batch = bench.padded([row], "left")
    wanted = logits_of(bench.reference, row)
    same(logits_in(module(**batch), "the forward"), wanted.unsqueeze(0), "logits of one row")
    inputs = ModelInputs.from_batch(batch)
    same(module.backend.run(inputs), wanted[-1:], "the backend's run of one row")
    generated = module.it_generate(batch, max_new_tokens=NEW_TOKENS, do_sample=False)
    check_generated(bench, generated, [row], len(row), "one row")
    step = module.run_step("predict_step", {**batch, "labels": torch.tensor([0])}, 0)
    expect(isinstance(step, dict), f"a step over one row gave {_about(step)}", "what the step returned")
    shape(step["logits"], (1, 2), "logits of a step over one row")


@rule(levels=[Level.framework, Level.model])
@torch.no_grad()
def mask_is_required(bench: Bench) -> None:
    """Several rows without an attention mask are refused: the mask cannot be guessed."""
    batch = {"input_ids": bench.even_batch()["input_ids"]}
    runs: Mapping[str, Callable[[], Any]] = {
        "a forward": lambda: bench.module(**batch),
        "a generation": lambda: bench.module.it_generate(batch, max_new_tokens=2, do_sample=False),
    }
    for what, run in runs.items():
        try:
            run()
        except DataError:
            continue
        raise RuleBroken(f"{what} of two rows without a mask goes through", "interpretune.DataError")


def _about(value: Any) -> str:
    return "None" if value is None else f"an object of the class {type(value).__name__}"
