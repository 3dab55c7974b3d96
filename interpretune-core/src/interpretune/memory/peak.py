"""The largest memory that a block takes, on each device that it runs on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator

import torch

from interpretune.memory.status import memory_status

INTERVAL = 0.002
"""Seconds between two looks at the memory of the process, on devices where nobody keeps its peak."""


class PeakMemory:
    """What a block takes.

    Attributes:
        before: Bytes taken before it, by device: of tensors on CUDA, of the whole process on others.
        peak: The most beside these at any moment of it.
    """

    def __init__(self, devices: Collection[torch.device]) -> None:
        self.devices = list(dict.fromkeys(devices))
        self.before = {device: _taken(device) for device in self.devices}
        self.peak = dict.fromkeys(self.devices, 0)

    def look(self, taken: int, device: torch.device) -> None:
        """Take note of what is taken now."""
        self.peak[device] = max(self.peak[device], taken - self.before[device])


@contextlib.contextmanager
def peak_memory(devices: Collection[torch.device]) -> Iterator[PeakMemory]:
    """Watch the memory of a block.

    On CUDA torch's own peak is read, and begins anew. Elsewhere a thread looks some hundred times a second, on the CPU
    at the memory of the process; what was free in the process before and is used again does not show there.

    Args:
        devices: Those that matter.

    Yields:
        What it takes, complete when the block ends.
    """
    found, ended = PeakMemory(devices), threading.Event()
    watched = [device for device in found.devices if device.type != "cuda"]

    def watch() -> None:
        while not ended.wait(INTERVAL):
            for device in watched:
                found.look(_taken(device), device)

    for device in found.devices:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
    watcher = threading.Thread(target=watch, name="interpretune-peak-memory", daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()
        for device in found.devices:
            found.look(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _taken(device), device)


def _taken(device: torch.device) -> int:
    status = memory_status(device)
    return status.resident if status.allocated is None else status.allocated
