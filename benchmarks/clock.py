"""Seconds, bytes and operations a second of pieces of work."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch


class Clock:
    """Seconds of named pieces of work, in turns, and seconds of processors, which neighbours lengthen less."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: dict[str, list[float]] = {}
        self.processor: dict[str, list[float]] = {}

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Time one piece of work."""
        self._wait()
        start, before = time.perf_counter(), time.process_time()
        result = work()
        self._wait()
        self.times.setdefault(name, []).append(time.perf_counter() - start)
        self.processor.setdefault(name, []).append(time.process_time() - before)
        return result

    def median(self, name: str) -> float:
        """Median seconds."""
        return statistics.median(self.times[name])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def peak_of(device: torch.device, work: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that a piece of work needs beyond what is there before, at its peak, and what it returns."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = work()
        return torch.cuda.max_memory_allocated(device) - before, result
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the allocator holds would hide what the work needs
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: the high-water mark begins anew
    result = work()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    return max(0, peak - before), result


def flops_per_second(device: torch.device, dtype: torch.dtype, *, processor: bool = False) -> float:
    """Of matrix products, or for each second of processors: the median of some, of the size that is faster."""
    best = 0.0
    for size in (1024, 2048):
        one, other = torch.randn(2, size, size, device=device, dtype=torch.float32).to(dtype)
        clock = Clock(device)
        for _ in range(6):
            clock.run("mm", lambda one=one, other=other: one @ other)
        times = clock.processor if processor else clock.times
        best = max(best, 2 * size**3 / statistics.median(times["mm"]))
    return best
