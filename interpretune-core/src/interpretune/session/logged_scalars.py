"""The read-only view of logged metrics that adapters get."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

EPOCH_MEAN = "epoch_mean"
"""The option of ``it_log`` that tells means over an epoch from values of steps."""


class LoggedScalars(Mapping[str, Tensor | float]):
    """Detached scalars by name. Each lookup of a tensor gives a new copy."""

    def __init__(self, metrics: Mapping[str, Tensor | float]) -> None:
        self._values = {
            name: value.detach() if isinstance(value, Tensor) else float(value) for name, value in metrics.items()
        }

    def __getitem__(self, name: str) -> Tensor | float:
        value = self._values[name]
        return value.clone() if isinstance(value, Tensor) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._values})"
