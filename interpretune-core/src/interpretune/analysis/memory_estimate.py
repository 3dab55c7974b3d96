"""How much memory a run will take, from its first batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from attrs import frozen
from rich.filesize import decimal
from torch import Tensor, nn

from interpretune.memory.peak import peak_memory
from interpretune.memory.status import memory_status
from interpretune.memory.storages import storage_of
from interpretune.system.placement import devices_of


@frozen
class MemoryEstimate:
    """Memory that a run takes on one device, in bytes.

    Attributes:
        device: The device.
        weights: Of the model and of latent models, as far as they lie there all the time.
        taken: Before the first batch: by tensors on CUDA; elsewhere by all of the process, libraries and weights too.
        batch: What the largest batch takes beside that, replayed rows included.
        free: What could be had beside ``taken``.
    """

    device: str
    weights: int
    taken: int
    batch: int
    free: int

    @property
    def needed(self) -> int:
        """All that is taken in the largest batch."""
        return self.taken + self.batch

    def __str__(self) -> str:
        told = (
            f"about {decimal(self.needed)} of memory on {self.device} ({decimal(self.weights)} of weights, "
            f"{decimal(self.batch)} for the largest batch)"
        )
        if self.batch <= self.free:
            return told
        return f"{told}, and {decimal(self.free)} are free: set a smaller eval_batch_size or a row_budget"


class MemoryWatch:
    """What a first batch takes, for an estimate of the largest."""

    def __init__(self, *modules: object) -> None:
        self._modules = [item for item in modules if isinstance(item, nn.Module)]
        self._free: dict[torch.device, int] = {}
        self._before: dict[torch.device, int] = {}
        self._peak: dict[torch.device, int] = {}

    @contextmanager
    def first_batch(self) -> Iterator[None]:
        """Watch the first batch."""
        devices = list(dict.fromkeys(chain.from_iterable(map(devices_of, self._modules))))
        self._free = {device: memory_status(device).free for device in devices}
        with peak_memory(devices) as found:
            yield
        self._before, self._peak = found.before, found.peak

    def estimates(self, slots: Sequence[int]) -> tuple[MemoryEstimate, ...]:
        """The estimates, by device.

        Args:
            slots: Rows of each batch times the tokens of its longest, padding included; what a batch takes is taken to
                grow with these.
        """
        larger = max(slots) / slots[0]
        weights = _weights(self._modules)
        return tuple(
            MemoryEstimate(str(device), weights.get(device, 0), before, round(larger * self._peak[device]), free)
            for (device, before), free in zip(self._before.items(), self._free.values(), strict=True)
        )


def slots_of(batch: Mapping[str, Any], rows: int) -> int:
    """Rows of a batch times its tokens, as its tensors ``[rows, tokens]`` show them."""
    widths = [item.shape[1] for item in batch.values() if isinstance(item, Tensor) and item.ndim == 2]
    return rows * max(widths, default=1)


def _weights(modules: Sequence[nn.Module]) -> dict[torch.device, int]:
    """Bytes of weights by device; those that several parts share count once, and those on ``meta`` nowhere."""
    tensors = [item for module in modules for item in (*module.parameters(), *module.buffers())]
    held = {there.key: (item.device, there.n_bytes) for item in tensors if (there := storage_of(item)) is not None}
    found: dict[torch.device, int] = {}
    for device, n_bytes in held.values():
        found[device] = found.get(device, 0) + n_bytes
    return found
