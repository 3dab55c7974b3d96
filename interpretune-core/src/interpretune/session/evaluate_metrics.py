"""Task metrics: from ``evaluate`` if it can load them, otherwise the same numbers computed here."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch

from interpretune.errors import ConfigurationError, DataError

ACCURACY_TASKS = {("super_glue", "rte"), ("super_glue", "boolq"), ("glue", "rte"), ("accuracy", None)}
"""Metrics that are plain accuracy and can be computed without ``evaluate``."""


class Accuracy:
    """Share of predictions that equal their reference, as ``evaluate`` defines it."""

    def compute(
        self, *, predictions: Sequence[int] | torch.Tensor, references: Sequence[int] | torch.Tensor
    ) -> dict[str, float]:
        """``{"accuracy": share}`` of predictions and references, both ``[n]`` and not empty (else ``DataError``)."""
        predicted, expected = torch.as_tensor(predictions).cpu(), torch.as_tensor(references).cpu()
        if predicted.shape != expected.shape or predicted.numel() == 0:
            raise DataError(
                f"predictions {tuple(predicted.shape)} and references {tuple(expected.shape)} must have one equal, "
                "non-zero length."
            )
        return {"accuracy": (predicted == expected).double().mean().item()}


def load_metric(path: str, config_name: str | None = None, **kwargs: Any) -> Any:
    """Load a metric by the name it has on the hub.

    Args:
        path: Name of the metric, for example ``super_glue``.
        config_name: Task of the metric, for example ``rte``.
        **kwargs: Passed to ``evaluate.load``, for example ``experiment_id``.

    Returns:
        An object with ``compute(predictions=..., references=...)``.

    Raises:
        ConfigurationError: ``evaluate`` cannot load the metric and core has no equivalent.
    """
    shipped = (path, config_name) in ACCURACY_TASKS
    cause: BaseException | None = None
    if importlib.util.find_spec("evaluate") is not None:
        import evaluate

        try:
            return evaluate.load(path, config_name, **kwargs)
        except Exception as error:  # noqa: BLE001 - chained below, or equalled by what is shipped; offline hubs and dropped loading scripts raise many kinds
            cause = error
    if shipped:
        return Accuracy()
    raise ConfigurationError(
        f"The metric {path!r} ({config_name!r}) cannot be loaded with `evaluate`"
        + (f": {type(cause).__name__}: {cause}" if cause else ", which is not installed")
        + f". Without it there are {sorted(map(str, ACCURACY_TASKS))}. `pip install evaluate` and check the network."
    ) from cause
