"""Weights of a hooked transformer in the order in which its blocks read them.

TransformerLens copies the weights of attention and of gated MLPs transposed at every call. For the few hundred tokens
of a replay that takes a fifth of the time. Tensors of the same shape and values, whose memory has that order already,
make these copies no-ops.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence

import torch
from attrs import frozen
from torch import Tensor, nn
from transformer_lens.components import Attention, GatedMLP, GroupedQueryAttention

from interpretune.replay import SHARE_OF_FREE_MEMORY, free_bytes

TRANSPOSED = (1, 0)
HEADS = (0, 2, 1)
ORDERS: dict[type[nn.Module], dict[str, tuple[int, ...]]] = {
    GatedMLP: {"W_gate": TRANSPOSED, "W_in": TRANSPOSED, "W_out": TRANSPOSED},
    Attention: {"W_Q": HEADS, "W_K": HEADS, "W_V": HEADS, "W_O": (2, 0, 1)},
    GroupedQueryAttention: {"W_Q": HEADS, "_W_K": HEADS, "_W_V": HEADS, "W_O": (2, 0, 1)},
}
"""The order of its axes in which a component of exactly this class reads a weight."""


@frozen(eq=False)
class _Weight:
    """One weight laid out.

    Attributes:
        module: The component.
        name: The weight's name in it.
        source: Shares the memory of the parameter, which therefore goes to nothing else.
        version: Of the parameter's values, as torch counts changes in place.
        laid_out: The same values.
    """

    module: nn.Module
    name: str
    source: Tensor
    version: int
    laid_out: Tensor

    @classmethod
    def of(cls, module: nn.Module, name: str, order: tuple[int, ...]) -> _Weight:
        source = module._parameters[name].detach()  # type: ignore[union-attr]
        back = [order.index(axis) for axis in range(len(order))]
        return cls(module, name, source, source._version, source.permute(order).contiguous().permute(back))

    def stands_for_parameter(self) -> bool:
        """Whether the module has the same values still, and nobody wants their gradient, in other threads either."""
        now = self.module._parameters.get(self.name)
        if now is None or self.name in self.module.__dict__ or now.requires_grad:
            return False
        same = now.data_ptr() == self.source.data_ptr() and now.dtype == self.source.dtype
        return same and now._version == self.version


class LaidOutWeights:
    """Lays out the weights of some blocks at the first use, and puts them over the parameters while a context lasts.

    They stand in the modules' ``__dict__``, which Python looks at before it asks a module for its parameters:
    ``parameters()``, ``state_dict()`` and optimizers see nothing of them. Where memory is short there are none. A
    parameter that has been changed since, moved or replaced, or that wants a gradient, is used itself; only changes
    through ``.data`` are not noticed. Other threads read the same values from them.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._blocks = blocks

    @functools.cached_property
    def _weights(self) -> list[_Weight]:
        found = [
            (module, name, order)
            for block in self._blocks
            for module in block.modules()
            for name, order in ORDERS.get(type(module), {}).items()
            if type(weight := module._parameters.get(name)) is nn.Parameter
            and weight.is_floating_point()
            and not weight.is_inference()
        ]
        room: dict[torch.device, float] = {}
        for module, name, _ in found:
            weight = getattr(module, name)
            left = room.setdefault(weight.device, SHARE_OF_FREE_MEMORY * free_bytes(weight.device))
            room[weight.device] = left - weight.nbytes
        fits = all(left >= 0 for left in room.values())
        return [_Weight.of(*item) for item in found] if fits else []

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """The context."""
        placed = [weight for weight in self._weights if weight.stands_for_parameter()]
        try:
            for weight in placed:
                weight.module.__dict__[weight.name] = weight.laid_out
            yield
        finally:
            for weight in placed:
                weight.module.__dict__.pop(weight.name, None)
