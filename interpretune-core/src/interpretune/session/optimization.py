"""Builds the optimizer of a session from its configuration, and checks that it has all trainable parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from interpretune.errors import ConfigurationError, TrainingError
from interpretune.latents.latent_model import LatentModel, summed
from interpretune.models.loading import import_object
from interpretune.plugins.contributions import OptimizerSetup, SchedulerSetup

if TYPE_CHECKING:
    from torch import nn

    from interpretune.config.module import ITConfig

SCHEDULE_FIELDS = ("interval", "frequency", "monitor")
SHOWN = 3
"""How many parameter names an error message lists."""


def build_optimizers(module: nn.Module, cfg: ITConfig) -> OptimizerSetup | None:
    """Follow ``optimizer_init`` and ``lr_scheduler_init``; None if no optimizer is configured.

    Raises:
        ConfigurationError: A recipe is wrong, no parameter requires a gradient, or the latent models to be
            trained do not exist or have no parameters.
    """
    if cfg.optimizer_init is None:
        return None
    if cfg.train_latent_models:
        check_latent_models(getattr(module, "latent_models", ()))
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigurationError(
            "optimizer_init is set and no parameter requires a gradient. Set freeze=False (or train_latent_models=True "
            "in a session with latent models), or drop optimizer_init."
        )
    optimizer = _build(cfg.optimizer_init, "optimizer_init", trainable)
    recipe = cfg.lr_scheduler_init
    if recipe is None:
        return OptimizerSetup(optimizers=(optimizer,))
    schedule = {name: recipe[name] for name in SCHEDULE_FIELDS if name in recipe}
    try:
        scheduler = SchedulerSetup(scheduler=_build(recipe, "lr_scheduler_init", optimizer), **schedule)
    except ValueError as error:
        raise ConfigurationError(f"lr_scheduler_init: {error.args[0]}.") from error
    return OptimizerSetup(optimizers=(optimizer,), schedulers=(scheduler,))


def check_latent_models(latent_models: Sequence[LatentModel]) -> None:
    """Check that there are latent models to train, with parameters, and no sum of outputs (``ConfigurationError``)."""
    if not latent_models:
        raise ConfigurationError(
            "train_latent_models=True, and the session has no latent models, so none would be trained. Give it some "
            "with ITConfig(latent_models=[...]) or in the field of an adapter that loads them, or drop "
            "train_latent_models."
        )
    fixed = [
        item.name
        for item in latent_models
        if not isinstance(item, torch.nn.Module) or next(item.parameters(), None) is None
    ]
    if fixed:
        raise ConfigurationError(
            f"train_latent_models=True, and these latent models have no torch parameters to train: "
            f"{', '.join(map(repr, fixed))}. Make them torch.nn.Module with parameters, or leave them out of this "
            "session."
        )
    if parts := summed(latent_models):
        raise ConfigurationError(
            f"train_latent_models=True, and what {', '.join(repr(item.name) for item in parts)} write is summed, as "
            "parts of a cross-layer transcoder: they have one loss together, which is not built here. Train it "
            "with its own library and load it, or leave these latent models out of this session."
        )


def as_optimizer_setup(returned: Any) -> OptimizerSetup | None:
    """Read what ``configure_optimizers`` returned.

    Args:
        returned: An ``OptimizerSetup``, or one of the forms that trainers document: an optimizer, a list of them, a
            pair of lists (optimizers, schedulers), a dictionary with ``optimizer`` and ``lr_scheduler``, or None.

    Raises:
        ConfigurationError: It is something else.
    """
    if returned is None or isinstance(returned, OptimizerSetup):
        return returned
    if isinstance(returned, Optimizer):
        return OptimizerSetup(optimizers=(returned,))
    if isinstance(returned, Mapping) and "optimizer" in returned:
        schedulers = [returned["lr_scheduler"]] if returned.get("lr_scheduler") is not None else []
        return OptimizerSetup(optimizers=(returned["optimizer"],), schedulers=map(_as_scheduler_setup, schedulers))
    if isinstance(returned, Sequence) and returned:
        if all(isinstance(item, Optimizer) for item in returned):
            return OptimizerSetup(optimizers=returned)
        if len(returned) == 2 and all(isinstance(item, Sequence) for item in returned):
            return OptimizerSetup(optimizers=returned[0], schedulers=map(_as_scheduler_setup, returned[1]))
    raise ConfigurationError(
        f"configure_optimizers returned {returned!r}. Return an optimizer, {{'optimizer': ..., 'lr_scheduler': ...}}, "
        "a pair of lists, an OptimizerSetup or None."
    )


def check_optimizers(module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Check that the optimizers of a training session hold every parameter that is marked trainable.

    Raises:
        TrainingError: There is no optimizer, one holds nothing to train, or a trainable parameter is in none.
    """
    if not optimizers:
        raise TrainingError(
            f"{type(module).__name__} has no optimizer, so nothing would be trained. Set ITConfig(optimizer_init="
            "{'class_path': 'torch.optim.AdamW', 'init_args': {'lr': 1e-5}}), or define configure_optimizers."
        )
    held = {
        id(parameter)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    }
    missed = [name for name, item in module.named_parameters() if item.requires_grad and id(item) not in held]
    if not held:
        raise TrainingError(
            f"The optimizer of {type(module).__name__} holds no parameter that requires a gradient, so nothing would "
            "be trained. Set freeze=False, or mark what shall be trained with requires_grad_()."
        )
    if missed:
        shown = ", ".join(missed[:SHOWN]) + (", ..." if len(missed) > SHOWN else "")
        raise TrainingError(
            f"{len(missed)} parameters of {type(module).__name__} are marked trainable and are in no optimizer: "
            f"{shown}. Hand them to the optimizer, or freeze them with requires_grad_(False)."
        )


def _as_scheduler_setup(scheduler: Any) -> SchedulerSetup:
    if isinstance(scheduler, Mapping):
        options = {name: scheduler[name] for name in SCHEDULE_FIELDS if scheduler.get(name) is not None}
        return SchedulerSetup(scheduler=scheduler["scheduler"], **options)
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ConfigurationError(
            "configure_optimizers returned a ReduceLROnPlateau without the metric that it watches. Return "
            "{'scheduler': scheduler, 'monitor': 'val_loss'}."
        )
    return SchedulerSetup(scheduler=scheduler)


def _build(recipe: Mapping[str, Any], where: str, first: Any) -> Any:
    """Instantiate ``{"class_path": ..., "init_args": {...}}``."""
    if "class_path" not in recipe:
        raise ConfigurationError(
            f"{where} has no class_path; write {{'class_path': 'torch.optim.AdamW', 'init_args': {{}}}}."
        )
    made = import_object(recipe["class_path"], where)
    try:
        return made(first, **recipe.get("init_args", {}))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{where}: {recipe['class_path']} does not take its init_args: {error}.") from error
