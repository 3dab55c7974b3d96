"""Gathers what steps log: latest values, means over an epoch, and lines of a JSONL file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

METRICS_FILE = "metrics.jsonl"


class MetricLog:
    """What the steps of one running loop have logged.

    Attributes:
        means_by_default: Whether values logged without ``on_epoch`` go into the means, as they do in evaluation.
    """

    def __init__(self, *, means_by_default: bool) -> None:
        self.means_by_default = means_by_default
        self._batch_size = 1
        self._latest: dict[str, Tensor | float] = {}
        self._sums: dict[str, tuple[Tensor | float, int]] = {}

    def start_batch(self, batch: Any) -> None:
        """The next values belong to this batch, whose size is their weight."""
        self._batch_size = batch_size_of(batch)
        self._latest = {}

    def end_batches(self) -> None:
        """What is logged from now on belongs to no batch."""
        self._batch_size = 1

    def record(
        self, metrics: Mapping[str, Tensor | float], *, batch_size: int | None = None, on_epoch: bool | None = None
    ) -> None:
        """Take values; they are read later, so that no accelerator is waited for."""
        self._latest.update(metrics)
        if self.means_by_default if on_epoch is None else on_epoch:
            weight = self._batch_size if batch_size is None else batch_size
            for name, value in metrics.items():
                total, weights = self._sums.get(name, (0.0, 0))
                self._sums[name] = (total + value * weight, weights + weight)

    def latest(self) -> dict[str, float]:
        """Values of the last batch."""
        return {name: float(value) for name, value in self._latest.items()}

    def take_means(self) -> dict[str, float]:
        """Means since the last call, weighted by the sizes of the batches."""
        means = {name: float(total) / weights for name, (total, weights) in self._sums.items() if weights}
        self._sums = {}
        return means


class MetricsFile:
    """A file with one line of JSON for each record: step, epoch, seconds since 1970, and metrics."""

    def __init__(self, run_dir: Path, resumed_at: int) -> None:
        """Open the file; lines of steps after ``resumed_at``, which will be made again, are dropped."""
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / METRICS_FILE
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= resumed_at]
            partial = path.with_suffix(".partial")
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            partial.replace(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, metrics: Mapping[str, float], *, step: int, epoch: int) -> None:
        """Append one record."""
        self._file.write(json.dumps({"step": step, "epoch": epoch, "time": round(time.time(), 3), **metrics}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def batch_size_of(batch: Any) -> int:
    """Rows of a batch: the first dimension of its first tensor; 1 where there is none."""
    return next(_first_dimensions(batch), 1)


def _first_dimensions(value: Any) -> Iterator[int]:
    if isinstance(value, Tensor):
        yield value.shape[0] if value.ndim else 1
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _first_dimensions(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _first_dimensions(item)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that was cut short
