"""Rules of forwards, generation, steps and logging, where nothing is padded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from interpretune.activations.inputs import ModelInputs, Points
from interpretune.errors import DataError
from interpretune.plugins.declaration import Level
from interpretune.session.session import it_session_end
from interpretune.testing.comparing import logits_in, same, shape
from interpretune.testing.reference import logits_of
from interpretune.testing.rule import RuleBroken, expect, rule
from interpretune.testing.workbench import Bench
from interpretune.training.metric_log import MetricLog

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
    wanted = logits_of(bench.reference, bench.even_rows)
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
    """Compare generated tokens and their logits with greedy decoding of each row alone."""
    expect(isinstance(found.logits, tuple), f"{what}: logits are {_about(found.logits)}", "a tuple, one for each token")
    new = found.sequences.shape[1] - width
    expect(
        found.sequences.shape[0] == len(rows) and 0 < new <= NEW_TOKENS and len(found.logits) == new,
        f"{what}: sequences {list(found.sequences.shape)} and {len(found.logits)} logits for prompts of {width} slots",
        f"sequences [{len(rows)}, {width} + new], with up to {NEW_TOKENS} new tokens and logits for each",
    )
    for i, row in enumerate(rows):
        tokens, logits = greedy(bench, row, NEW_TOKENS, bench.eos_token_id, model)
        got = found.sequences[i, width:][: len(tokens)].tolist()
        expect(got == tokens, f"{what}: row {i} goes on with the tokens {got}", f"{tokens}, as the row alone does")
        steps = torch.stack([step[i] for step in found.logits[: len(tokens)]])
        same(steps, logits, f"{what}: logits of the new tokens of row {i}")


def greedy(
    bench: Bench, row: Tensor, most: int, end: int | None = None, model: Any | None = None
) -> tuple[list[int], Tensor]:
    """Tokens and logits ``[new, vocab]`` of plain greedy decoding up to an end token, a whole forward for each."""
    plain = bench.reference if model is None else model
    tokens: list[int] = []
    logits: list[Tensor] = []
    while len(tokens) < most and end not in tokens:
        logits.append(logits_of(plain, torch.cat([row, torch.tensor(tokens, dtype=torch.long)]))[-1])
        tokens.append(int(logits[-1].argmax()))
    return tokens, torch.stack(logits)


@rule(stack=True, after=["sessions-stay-apart"])
@torch.no_grad()
def logits_where_asked(bench: Bench) -> None:
    """Logits at chosen points are those at the same points of all logits."""
    inputs = bench.even_inputs()
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


VALUES = {"a_loss": 0.123456789, "an_accuracy": 0.5}
OPTIONS = {"batch_size": 3, "on_epoch": True, "prog_bar": True}


@rule(stack=True, after=["results-arrive"])
def metrics_stay_as_logged(bench: Bench) -> None:
    """Logging changes neither the values that were logged, nor the tensors of the user, nor the options of the call."""
    session = bench.new_session()
    module: Any = session.module
    _check_hook(module)
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in VALUES.items()}
    module._it_state.metric_log = log = MetricLog(means_by_default=False)
    for logged, weight in ((tensors["a_loss"], 3), (torch.tensor(1.0), 1)):
        module.log("a_loss", logged, **{**OPTIONS, "batch_size": weight})
    module._it_state.metric_log = None
    wanted = (3 * VALUES["a_loss"] + 1) / 4
    mean = log.take_means().get("a_loss")
    expect(
        mean is not None and abs(mean - wanted) < 1e-6,
        f"a metric that was logged for 3 rows and for 1 row has the mean {mean}",
        f"{wanted:.6f}, weighted by batch_size",
    )
    module.log_dict(tensors, **OPTIONS)
    for name, value in VALUES.items():
        found = float(tensors[name])
        expect(found == value, f"the tensor that was logged as {name} is {found} afterwards", f"{value}, as before")
        kept = module.logged_metrics.get(name)
        expect(kept == value, f"{name} was logged as {value} and is {kept} in logged_metrics", f"{value}")
    it_session_end(**session)


def _check_hook(module: Any) -> None:
    """Call the hook with what it could change, where core hands over copies that are read-only, and look at it."""
    metrics: dict[str, Any] = {name: torch.tensor(value, dtype=torch.float64) for name, value in VALUES.items()}
    metrics["a_number"], options = 2.5, dict(OPTIONS)
    given = dict(metrics)
    module.hook.it_log(module=module, metrics=metrics, options=options)
    expect(options == OPTIONS, f"it_log changed the options {OPTIONS} to {options}", "options left alone")
    same_objects = metrics.keys() == given.keys() and all(metrics[name] is given[name] for name in given)
    expect(same_objects, f"it_log changed the mapping of metrics to {metrics}", "a mapping left alone")
    for name, value in VALUES.items():
        found = float(given[name])
        expect(
            found == value, f"it_log changed {name} in place from {value} to {found}", "tensors left alone: copy them"
        )
