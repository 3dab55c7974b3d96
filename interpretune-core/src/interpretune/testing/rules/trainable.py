"""The rule of models that a user wants to train."""

from __future__ import annotations

from typing import Any

import torch

from interpretune.session.session import it_session_end
from interpretune.testing.rule import expect, rule
from interpretune.testing.workbench import Bench


@rule(stack=True, after=["forward-agrees"])
def model_stays_trainable(bench: Bench) -> None:
    """With freeze=False all weights of the model require a gradient and get one; with freeze=True none does."""
    frozen = bench.new_session(freeze=True)
    left = [name for name, item in frozen.module.model.named_parameters() if item.requires_grad]
    expect(not left, f"with freeze=True {_some(left)} require a gradient", "none")
    it_session_end(**frozen)
    session = bench.new_session(freeze=False)
    module: Any = session.module
    parameters = {name: item for name, item in module.model.named_parameters() if item.is_floating_point()}
    fixed = [name for name, item in parameters.items() if not item.requires_grad]
    trainable = sum(item.numel() for item in parameters.values() if item.requires_grad)
    wanted = sum(item.numel() for item in bench.reference.parameters())
    expect(
        trainable >= wanted,
        f"with freeze=False {len(fixed)} of {len(parameters)} parameters of the model are frozen, {_some(fixed)}; "
        f"{trainable} numbers can be trained",
        f"at least the {wanted} of the plain model: core freezes the model where the user wants it",
    )
    with torch.enable_grad():
        batch = {**bench.even_batch(), "labels": torch.tensor([0, 1], device=module.device)}
        loss = module.class_logits(batch).square().sum()
        expect(loss.requires_grad, "logits of the forward know no gradients where they are on", "logits that do")
        loss.backward()
    without = [name for name, item in parameters.items() if item.requires_grad and item.grad is None]
    expect(not without, f"no gradient reaches {_some(without)}", "a gradient for each parameter that the forward uses")
    it_session_end(**session)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
