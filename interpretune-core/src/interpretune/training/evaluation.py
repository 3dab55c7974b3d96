"""Core's evaluation loops: validation, test, prediction."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor, nn

from interpretune.errors import CheckpointError, TrainingError
from interpretune.system.progress import progress_bar
from interpretune.system.torch_state import eval_mode
from interpretune.training.batches import count_batches, only_loader, read_batches
from interpretune.training.checkpoint import find_checkpoint, load_checkpoint
from interpretune.training.config import LoopConfig, LoopResult
from interpretune.training.metric_log import MetricLog

if TYPE_CHECKING:
    from rich.progress import Progress

    from interpretune.session.datamodule import ITDataModule
    from interpretune.session.module import ITModule


@frozen
class Evaluation:
    """What distinguishes the evaluation loops."""

    step: str
    loader: str
    limit: str
    event: str


EVALUATIONS: Mapping[str, Evaluation] = {
    "validate": Evaluation("validation_step", "val_dataloader", "limit_val_batches", "validation"),
    "test": Evaluation("test_step", "test_dataloader", "limit_test_batches", "test"),
    "predict": Evaluation("predict_step", "predict_dataloader", "limit_predict_batches", "predict"),
}


def evaluate(
    module: ITModule, datamodule: ITDataModule, loop: str, cfg: LoopConfig, progress: Progress | None = None
) -> LoopResult:
    """Run an evaluation loop without gradients and in eval mode; modes are put back afterwards.

    Args:
        module: The session's module.
        datamodule: Its data module.
        loop: ``validate``, ``test`` or ``predict``.
        cfg: What to do.
        progress: A progress bar that is shown already; a terminal has room for one.

    Returns:
        The means of what the steps logged, weighted by the sizes of the batches, and, for ``predict``, what they
        returned.

    Raises:
        TrainingError: The module has no such step, or there are no batches.
        CheckpointError: ``resume_from`` does not fit.
    """
    about = EVALUATIONS[loop]
    step = step_of(module, about.step, loop)
    if cfg.resume_from is not None:
        folder = find_checkpoint(cfg.resume_from, cfg.run_folder)
        if folder is None:
            raise CheckpointError(f"{cfg.run_folder} holds no whole checkpoint to take weights from.")
        load_checkpoint(folder, module)
    loader = only_loader(getattr(datamodule, about.loader)(), about.loader)
    count = count_batches(loader, getattr(cfg, about.limit))
    bar = progress_bar(shown=cfg.progress) if progress is None else contextlib.nullcontext(progress)
    state = module._it_state
    before, state.metric_log = state.metric_log, MetricLog(means_by_default=True)
    log = state.metric_log
    predictions = []
    try:
        with eval_mode(module), torch.no_grad(), bar as progress:
            task = progress.add_task(loop, total=count)
            call_if_defined(module, f"on_{about.event}_start")
            call_if_defined(module, f"on_{about.event}_epoch_start")
            for index, batch in read_batches(loader, count):
                log.start_batch(batch)
                result = step(module.batch_to_device(batch), index)
                if loop == "predict":
                    predictions.append(_on_cpu(result))
                progress.advance(task)
            progress.remove_task(task)
            log.end_batches()
            call_if_defined(module, f"on_{about.event}_epoch_end")
            call_if_defined(module, f"on_{about.event}_end")
            metrics = log.take_means()
            module.log_means(metrics)
    finally:
        state.metric_log = before
    return LoopResult(metrics=metrics, predictions=predictions, global_step=module.global_step)


def step_of(module: ITModule, name: str, loop: str) -> Any:
    """A step of the module as a function of batch and index; steps that take the batch alone are called so.

    Raises:
        TrainingError: The module has none.
    """
    step = getattr(module, name, None)
    if step is None:
        raise TrainingError(
            f"{type(module).__name__} has no {name}, which {loop} calls for each batch. Define "
            f"`def {name}(self, batch, batch_idx)`, or derive from a class that does."
        )
    try:
        inspect.signature(step).bind(None, 0)
    except TypeError:
        return lambda batch, index: module.run_step(name, batch)
    return lambda batch, index: module.run_step(name, batch, index)


def call_if_defined(module: nn.Module, name: str) -> None:
    """Call a method that users may define, such as ``on_train_epoch_end``."""
    method = getattr(module, name, None)
    if method is not None:
        method()


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {name: _on_cpu(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_on_cpu(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)  # named tuples take them singly
    return value
