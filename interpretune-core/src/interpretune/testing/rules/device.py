"""Rules of devices and dtypes: everything follows the module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from interpretune.activations.inputs import ModelInputs
from interpretune.testing.comparing import logits_in, same
from interpretune.testing.places import latents, offered
from interpretune.testing.results import results_of
from interpretune.testing.rule import RuleSkipped, expect, rule
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
        found = {str(item.device) for item in _tensors(moved)}
        expect(found == {str(device)}, f"a batch for a module on {device} has tensors on {found}", f"{device}")
        expect(
            moved.get("text") == "not moved", "what is no tensor is lost from the batch", "a batch with all its keys"
        )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


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
    module = bench.new_session().module.to(torch.float64)
    inputs, names = ModelInputs.from_batch(bench.even_batch()), offered(bench)
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
