"""``fit``, ``validate``, ``test`` and ``predict``: the loops of whatever framework is stacked."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from interpretune.errors import ConfigurationError
from interpretune.session.session import it_init
from interpretune.system.compiled import compiled_in_place, uncompiled
from interpretune.system.put_back import random_state_put_back
from interpretune.training.config import LoopConfig, LoopResult

if TYPE_CHECKING:
    from interpretune.session.datamodule import ITDataModule
    from interpretune.session.module import ITModule


def fit(
    module: ITModule | None = None,
    datamodule: ITDataModule | None = None,
    loop_cfg: LoopConfig | None = None,
    *,
    model: ITModule | None = None,
) -> LoopResult:
    """Train: call it as ``fit(**session, loop_cfg=LoopConfig(...))``; ``it_init`` is called first where it was not.

    Args:
        module: The session's module, with a ``training_step`` and, optionally, a ``validation_step``.
        datamodule: The session's data module.
        loop_cfg: What to do; None: one epoch.
        model: The module, under framework adapters that call it so.

    Raises:
        TrainingError: A step or an optimizer is missing, or a loss is no finite number.
        CheckpointError: ``resume_from`` does not fit.
    """
    return _start("fit", module, datamodule, loop_cfg, model)


def validate(
    module: ITModule | None = None,
    datamodule: ITDataModule | None = None,
    loop_cfg: LoopConfig | None = None,
    *,
    model: ITModule | None = None,
) -> LoopResult:
    """Run ``validation_step`` over the validation batches; arguments and errors are those of ``fit``."""
    return _start("validate", module, datamodule, loop_cfg, model)


def test(
    module: ITModule | None = None,
    datamodule: ITDataModule | None = None,
    loop_cfg: LoopConfig | None = None,
    *,
    model: ITModule | None = None,
) -> LoopResult:
    """Run ``test_step`` over the test batches; arguments and errors are those of ``fit``."""
    return _start("test", module, datamodule, loop_cfg, model)


def predict(
    module: ITModule | None = None,
    datamodule: ITDataModule | None = None,
    loop_cfg: LoopConfig | None = None,
    *,
    model: ITModule | None = None,
) -> LoopResult:
    """Collect what ``predict_step`` returns for each batch; arguments and errors are those of ``fit``."""
    return _start("predict", module, datamodule, loop_cfg, model)


def _start(
    loop: str,
    module: ITModule | None,
    datamodule: ITDataModule | None,
    loop_cfg: LoopConfig | None,
    model: ITModule | None,
) -> LoopResult:
    owner = module if module is not None else model
    if owner is None or datamodule is None:
        raise ConfigurationError(f"{loop} needs a module and a data module: call it as {loop}(**session).")
    if loop_cfg is not None and not isinstance(loop_cfg, LoopConfig):
        raise ConfigurationError(
            f"{loop} got a {type(loop_cfg).__name__} as loop_cfg. Write loop_cfg=LoopConfig(max_epochs=1, ...)."
        )
    if (inner := uncompiled(owner)) is not owner:  # of what was compiled, the model is; what is around it cannot be
        compiled_in_place(inner.model, vars(owner)["dynamo_ctx"])
        owner = inner
    if not owner.initialised:
        it_init(module=owner, datamodule=datamodule)
    cfg = loop_cfg or LoopConfig()
    with seeded(cfg.seed):
        result: LoopResult = owner.hook.it_run_loop(module=owner, datamodule=datamodule, loop=loop, loop_cfg=cfg)
    return result


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed the global generators, and put them back afterwards; None: leave them alone."""
    if seed is None:
        yield
        return
    with random_state_put_back():
        random.seed(seed)
        torch.manual_seed(seed)
        yield
