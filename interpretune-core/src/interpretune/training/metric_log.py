"""Gathers what steps log: latest values, means over an epoch, and lines of a JSONL file."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from interpretune.system.plain_files import open_plain
from interpretune.system.whole_file import output_file, writing

METRICS_FILE = "metrics.jsonl"
ELSEWHERE = "choose another run_dir"


class MetricLog:
    """What the steps of one running loop have logged.

    Attributes:
        means_by_default: Whether values that belong to a batch and are logged without ``on_epoch`` go into the means,
            as they do in evaluation. Those that belong to none, from ``on_train_epoch_end`` for one, always do.
    """

    def __init__(self, *, means_by_default: bool) -> None:
        self.means_by_default = means_by_default
        self._batch_size, self._in_batch = 1, False
        self._latest: dict[str, Tensor | float] = {}
        self._sums: dict[str, tuple[Tensor | float, float]] = {}

    def start_batch(self, batch: Any) -> None:
        """The next values belong to this batch, whose size is their weight."""
        self._batch_size, self._in_batch = batch_size_of(batch), True
        self._latest = {}

    def end_batches(self) -> None:
        """What is logged from now on belongs to no batch."""
        self._batch_size, self._in_batch = 1, False

    def record(
        self, metrics: Mapping[str, Tensor | float], *, batch_size: int | None = None, on_epoch: bool | None = None
    ) -> None:
        """Take values; they are read later, so that no accelerator is waited for."""
        self._latest.update(metrics)
        if on_epoch is None:
            on_epoch = self.means_by_default or not self._in_batch
        if on_epoch:
            weight = self._batch_size if batch_size is None else batch_size
            for name, value in metrics.items():
                total, weights = self._sums.get(name, (0.0, 0.0))
                exact = _exact(value) if isinstance(value, Tensor) else value
                self._sums[name] = (total + exact * weight, weights + weight)

    def latest(self) -> dict[str, float]:
        """Values of the last batch, and those logged since."""
        return {name: float(value) for name, value in self._latest.items()}

    @property
    def sums(self) -> dict[str, tuple[float, float]]:
        """Weighted sum and weight of each mean that is in the making; assign them to go on after an interruption."""
        return {name: (float(total), weight) for name, (total, weight) in self._sums.items()}

    @sums.setter
    def sums(self, sums: Mapping[str, tuple[float, float]]) -> None:
        self._sums = {name: (total, weight) for name, (total, weight) in sums.items()}

    def take_means(self) -> dict[str, float]:
        """Means since the last call, weighted by the sizes of the batches."""
        means = {name: total / weight for name, (total, weight) in self.sums.items() if weight}
        self._sums = {}
        return means


class MetricsFile:
    """A file with one line of JSON for each record: step, epoch, seconds since 1970, and metrics.

    Attributes:
        records: Number of lines.
    """

    def __init__(self, run_dir: Path, records: int = 0) -> None:
        """Open the file and keep its first ``records`` lines: a resumed run writes the later ones again.

        Raises:
            OutputError: It cannot be written.
        """
        self._path = path = run_dir / METRICS_FILE
        kept = []
        with writing(path, ELSEWHERE):
            if path.exists():
                with io.TextIOWrapper(open_plain(path), encoding="utf-8") as file:
                    kept = list(islice(file, records))
            with output_file(path, ELSEWHERE) as partial:
                partial.write_text("".join(kept), encoding="utf-8")
            self._file = path.open("a", encoding="utf-8", buffering=1)
        self.records = len(kept)

    def write(self, metrics: Mapping[str, float], *, step: int, epoch: int) -> None:
        """Append one record (``OutputError``); JSON knows no NaN and no infinity, so that they become null."""
        about = {"step": step, "epoch": epoch, "time": round(time.time(), 3)}
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with writing(self._path, ELSEWHERE):
            self._file.write(json.dumps({**about, **values, **about}, allow_nan=False) + "\n")
        self.records += 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _exact(value: Tensor) -> Tensor:
    """A value in the widest dtype of its device: sums in half precision would stand still, and float64 stays so."""
    return value.float() if value.device.type == "mps" else value.double()


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
