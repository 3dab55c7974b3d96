"""Modes, flags and gradients of torch that are set for a while and put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from interpretune.system.put_back import attribute_put_back, values_put_back


def gradients_of(value: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a scalar; 0 with respect to what it does not depend on."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(value, leaves, materialize_grads=True)


@contextlib.contextmanager
def frozen_parameters(*owners: object) -> Iterator[None]:
    """Turn parameter gradients off for the duration of a block and restore each flag afterwards.

    The flags are those of the parameters themselves, which other threads see too. Blocks of several threads may end in
    any order.

    Args:
        *owners: Modules; anything that is no module has no parameters.
    """
    modules = [owner for owner in owners if isinstance(owner, nn.Module)]
    parameters = [parameter for owner in modules for parameter in owner.parameters()]
    # offloaded weights are new objects after each forward, which take the flag over: they are known by module and name
    passing = {
        f"{id(part)} {name}": (part, name)
        for owner in modules
        for part in owner.modules()
        for name, parameter in part.named_parameters(recurse=False)
        if parameter.is_meta
    }

    def write(key: str, flag: bool) -> None:
        part, name = passing[key]
        part.get_parameter(name).requires_grad_(flag)

    with (
        attribute_put_back([item for item in parameters if not item.is_meta], "requires_grad"),
        values_put_back(
            "requires_grad of offloaded weights",
            passing,
            lambda key: passing[key][0].get_parameter(passing[key][1]).requires_grad,
            write,
        ),
    ):
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield


@contextlib.contextmanager
def eval_mode(*owners: object) -> Iterator[None]:
    """Put modules into eval mode, and each of their parts back into its own mode afterwards.

    The mode is that of the modules themselves, which other threads see too. Blocks of several threads may end in any
    order: the last one puts back what the first one found.

    Args:
        *owners: Modules; anything that is no module has no mode.
    """
    modules = [owner for owner in owners if isinstance(owner, nn.Module)]
    with attribute_put_back([part for module in modules for part in module.modules()], "training"):
        for module in modules:
            module.eval()
        yield
