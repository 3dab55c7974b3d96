"""Metrics of an evaluation in several processes: each row counts once, whatever its process and its batch.

Lightning averages the sums and the row counts of the processes, counts as integers, and processes may have unequally
many rows. Here both are float64, and a batch that is there for evenness only (``WholeBatchSampler``) weighs nothing.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field
from torch import Tensor, nn
from torchmetrics import Metric

from interpretune.training import batch_size_of
from interpretune_lightning.sharing import WholeBatchSampler, samplers_of

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

NEUTRAL = {"min": torch.inf, "max": -torch.inf}
"""What changes nothing, by reduction; 0 for sums and means."""


@define
class BatchInHand:
    """The batch that a step sees, in one of several processes.

    Attributes:
        rows: Its rows.
        repeated: It is another process's, and there for evenness only.
        before: States of the module's ``torchmetrics`` before a repeated batch.
    """

    rows: int
    repeated: bool
    before: Sequence[tuple[Metric, Mapping[str, Any], int]] = field(factory=tuple)

    @classmethod
    def of(cls, trainer: Trainer, module: nn.Module, batch: Any, batch_idx: int, loader_idx: int) -> BatchInHand:
        """The batch at the beginning of a step."""
        loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        sampler = samplers_of(loaders)[loader_idx]
        repeated = sampler is not None and sampler.is_repeated(batch_idx)
        return cls(batch_size_of(batch), repeated, _states(module.modules()) if repeated else ())

    def put_back(self) -> None:
        """Let a repeated batch leave nothing in the module's ``torchmetrics``."""
        for metric, states, updates in self.before:
            for name, value in states.items():
                setattr(metric, name, value)
            metric._update_count, metric._computed = updates, None

    def logged(self, value: Any, options: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """What to log with the trainer instead of a value of this batch, and how."""
        exact = _exact(value)
        if self.repeated:
            exact = torch.full_like(exact, NEUTRAL.get(_reduction(options), 0))
        rows = 0 if self.repeated else options.get("batch_size")
        return exact, {**options, "batch_size": _exact(self.rows if rows is None else rows)}


def _states(modules: Iterable[nn.Module]) -> list[tuple[Metric, Mapping[str, Any], int]]:
    metrics = [item for item in modules if isinstance(item, Metric)]
    return [(item, copy.deepcopy(item.metric_state), item._update_count) for item in metrics]


def _reduction(options: Mapping[str, Any]) -> str:
    given = options.get("reduce_fx", "mean")
    return str(given if isinstance(given, str) else getattr(given, "__name__", "mean")).lower()


def _exact(value: Any) -> Tensor:
    """In float64, where the device has it."""
    device = value.device if isinstance(value, Tensor) else torch.device("cpu")
    return torch.as_tensor(value, dtype=torch.float32 if device.type == "mps" else torch.float64)


def logged_once(
    trainer: Trainer, batch: BatchInHand | None, name: str, value: Any, options: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """What to log with the trainer, and how, so that each row counts once.

    A mean of means of unequal shares, logged at the end of an evaluation, is warned of.

    Args:
        trainer: The trainer that evaluates.
        batch: What the value belongs to; None: there is one process, or it is the end of the evaluation.
        name: Of the metric.
        value: Of it.
        options: Other arguments of ``LightningModule.log``.
    """
    if isinstance(value, Metric):
        return value, dict(options)
    if batch is not None:
        return batch.logged(value, options)
    if trainer.world_size == 1:
        return _exact(value), dict(options)
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    uneven = any(item is None or item.is_uneven for item in samplers_of(loaders))
    if uneven and options.get("sync_dist") and _reduction(options) in ("mean", "avg"):
        warnings.warn(
            f"{name} is logged at the end of an epoch, and the processes have unequally many rows: the mean of their "
            "values is not the value of all rows. Log it for each batch in the step, log sums (reduce_fx='sum') and "
            "divide them afterwards, or log an object of torchmetrics.",
            UserWarning,
            stacklevel=3,
        )
    return _exact(value), dict(options)


def predictions_of_all(
    predictions: Sequence[Sequence[Any]], samplers: Sequence[WholeBatchSampler | None], processes: int
) -> list[list[Any]]:
    """The predictions of all processes in the order of a single one, for each loader; each batch once.

    Args:
        predictions: Those of this process, by loader and batch.
        samplers: What shares the batches of each loader; what nobody shares stays as it is.
        processes: How many there are.
    """
    result = []
    for own, sampler in zip(predictions, samplers, strict=True):
        if sampler is None:
            result.append(list(own))
            continue
        numbered = [
            (sampler.batch_number(index), item) for index, item in enumerate(own) if not sampler.is_repeated(index)
        ]
        gathered: list[Any] = [None] * processes
        torch.distributed.all_gather_object(gathered, numbered)
        in_order = sorted((pair for share in gathered for pair in share), key=lambda pair: pair[0])
        result.append([item for _, item in in_order])
    return result
