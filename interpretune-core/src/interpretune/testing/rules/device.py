"""Rules of devices and dtypes: everything follows the module."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import torch
from torch import Tensor

from interpretune.activations.hook_names import RESID_POST, RESID_PRE, in_layer, split_layer
from interpretune.testing.backend_runs import backend_results, results_of
from interpretune.testing.comparing import copies, logits_in, same
from interpretune.testing.hook_points import holding, latents, offered, shrunk
from interpretune.testing.rule import RuleBroken, RuleSkipped, expect, rule
from interpretune.testing.workbench import Bench

ELSEWHERE = torch.device("meta")
"""A device that every machine has and no module starts on."""


@rule(stack=True, after=["session-runs"])
def batches_move(bench: Bench) -> None:
    """Batches are moved to the module's device, wherever that is, and tensors in mappings and lists with them."""
    module = bench.new_session().module
    tokens = bench.rows[0].unsqueeze(0)
    for device in (torch.device("cpu"), ELSEWHERE):
        module.to(device)
        expect(module.device == device, f"after module.to({str(device)!r}) it says {module.device}", f"{device}")
        batch = {"input_ids": tokens, "more": {"of": [tokens, tokens]}, "text": "not moved"}
        moved = module.batch_to_device(batch)
        found = {str(item.device) for item in copies(moved).values() if isinstance(item, Tensor)}
        expect(found == {str(device)}, f"a batch for a module on {device} has tensors on {found}", f"{device}")
        expect(
            moved.get("text") == "not moved", "what is no tensor is lost from the batch", "a batch with all its keys"
        )


@rule(stack=True, after=["batches-move", "gradients-agree", "ablation-agrees"])
@torch.no_grad()
def results_on_the_device(bench: Bench) -> None:
    """Every result is on the module's device."""
    for what, found in results_of(bench, bench.module, latents(bench)):
        device = bench.module.device
        expect(found.device == device, f"{what}: on {found.device}", f"{device}, as the module")


@rule(stack=True, after=["cache-is-a-copy", "forward-agrees"])
@torch.no_grad()
def dtype_follows(bench: Bench) -> None:
    """A module in float64 gives results in float64, the same numbers."""
    module = _in_dtype(bench, torch.float64)
    inputs, names = bench.even_inputs(), offered(bench)
    before = bench.backend.run_with_cache(inputs, names)
    logits, cache = module.backend.run_with_cache(inputs, names)
    forward = logits_in(module(**bench.even_batch()), "the forward")
    for what, found in {"logits": logits, "logits of the forward": forward, **cache}.items():
        expect(found.dtype == torch.float64, f"{what}: {found.dtype} in a module of float64", "torch.float64")
    same(logits, before[0], "logits in float64")
    for name in names:
        same(cache[name], before[1][name], f"activations at {name} in float64")


@rule(stack=True, after=["results-on-the-device"])
@torch.no_grad()
def accelerator_agrees(bench: Bench) -> None:
    """On an accelerator every result is there, and is what it is on the CPU."""
    if not torch.cuda.is_available():
        raise RuleSkipped("there is no CUDA device here")
    wanted = dict(results_of(bench, bench.module, latents(bench)))
    module = bench.new_session(device="cuda").module
    for what, found in results_of(bench, module, [item.to(module.device) for item in latents(bench)]):
        expect(found.device == module.device, f"{what}: on {found.device}", f"{module.device}, as the module")
        same(found, wanted[what], f"{what}, on {module.device}", tolerance=1e-3)


DTYPES = (torch.float64, torch.bfloat16)


@rule(stack=True, after=["dtype-follows", "no-hooks-left"])
@torch.no_grad()
def edits_in_the_models_dtype(bench: Bench) -> None:
    """In bfloat16 an edit gets activations in bfloat16, and what it gives goes on in bfloat16, to the bit."""
    dtype = torch.bfloat16
    backend, names = _module(bench, dtype).backend, offered(bench)
    of_logits = backend.forward(bench.even_inputs(), {}).dtype  # another rule is about it
    for index, name in enumerate(names):
        seen: dict[str, Tensor] = {}
        given: list[Tensor] = []

        def edit(activations: Tensor, given: list[Tensor] = given) -> Tensor:
            given[:] = [activations, shrunk(activations)]
            return given[1].clone()

        following = {other: holding(seen, other) for other in names[index + 1 :]}
        try:
            logits = backend.forward(bench.even_inputs(), {name: edit, **following})
        except RuntimeError as error:
            raise RuleBroken(
                f"a forward of a model in {dtype} with an edit at {name}, which was given "
                f"{given[0].dtype if given else 'nothing'}, fails: {error}",
                f"{dtype} before and after the edit, as the model",
            ) from error
        expect(given[0].dtype == dtype, f"an edit at {name} gets {given[0].dtype}", f"{dtype}, the model's dtype")
        for other, value in seen.items():
            expect(value.dtype == dtype, f"after an edit at {name} there is {value.dtype} at {other}", f"{dtype}")
        expect(logits.dtype == of_logits, f"after an edit at {name} logits are in {logits.dtype}", f"{of_logits}")
        _check_bits(name, given[1], seen)


@rule(stack=True, after=["edits-in-the-models-dtype"])
@torch.no_grad()
def logits_in_the_models_dtype(bench: Bench) -> None:
    """Logits of every run of a model in bfloat16 or float64 are in that dtype; generation alone may give float32."""
    for dtype in DTYPES:
        module = _module(bench, dtype)
        models = [item.to(dtype) for item in latents(bench)]
        forward = ("logits of the forward", logits_in(module(**bench.even_batch()), "the forward"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # replays too coarse in bfloat16 to be trusted
            for what, found in itertools.chain([forward], backend_results(bench, module, models)):
                if what.startswith("logits"):
                    expect(found.dtype == dtype, f"{what} of a model in {dtype} are in {found.dtype}", f"{dtype}")


def _check_bits(name: str, given: Tensor, seen: dict[str, Tensor]) -> None:
    """What an edit gives after a block is what the next block reads."""
    found = split_layer(name)
    after = in_layer(found[0] + 1, RESID_PRE) if found is not None and found[1] == RESID_POST else None
    if after in seen:
        worst = float((seen[after] - given).abs().max())
        expect(
            torch.equal(seen[after], given),
            f"{after} has other numbers than an edit at {name} gave, by up to {worst:.3g}",
            "the same numbers, to the bit: nothing rounds between them",
        )


def _module(bench: Bench, dtype: torch.dtype) -> Any:
    """A module in a dtype in which it runs."""
    module = _in_dtype(bench, dtype)
    try:
        module(**bench.even_batch())
    except RuntimeError as error:
        raise RuleSkipped(f"after module.to({dtype}) a forward with no edit fails: {error}") from error
    return module


def _in_dtype(bench: Bench, dtype: torch.dtype) -> Any:
    """A module in a dtype, made once for all rules; none may change it."""
    made = bench.notes.setdefault("modules by dtype", {})
    if dtype not in made:
        made[dtype] = bench.new_session().module.to(dtype)
    return made[dtype]
