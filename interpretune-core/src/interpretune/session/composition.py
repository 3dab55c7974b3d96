"""Composes the configuration classes of a session from the dataclasses of adapters and users."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass, make_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar, cast

from interpretune.config.checked import check_argument
from interpretune.config.datamodule import ITDataModuleConfig
from interpretune.config.latents import LatentRequest
from interpretune.config.module import AutoCompConfig, ITConfig
from interpretune.config.shared import ITSharedConfig
from interpretune.errors import ConfigurationError
from interpretune.plugins.stack import ExecutionContext

Config = TypeVar("Config", bound=ITSharedConfig)


def compose_module_cfg(cfg: ITConfig, context: ExecutionContext) -> ITConfig:
    """Give a module configuration the fields of the user's mixins and of the stacked adapters.

    Raises:
        ConfigurationError: A field was set that no stacked adapter and no mixin declares.
    """
    recipe = cfg.auto_comp_cfg or AutoCompConfig()
    return _compose(cfg, recipe.module_cfg_name, recipe.module_cfg_mixin, context, "module_cfg")


def compose_datamodule_cfg(
    cfg: ITDataModuleConfig, context: ExecutionContext, recipe: AutoCompConfig | None
) -> ITDataModuleConfig:
    """Give a data module configuration the fields of the user's mixins and of the stacked adapters."""
    recipe = recipe or AutoCompConfig()
    return _compose(cfg, recipe.datamodule_cfg_name, recipe.datamodule_cfg_mixin, context, "datamodule_cfg")


def apply_shared(cfg: Config, shared: ITSharedConfig | None) -> Config:
    """Copy shared settings into a configuration, for fields that still have their default."""
    if shared is not None:
        for item in fields(ITSharedConfig):
            if getattr(cfg, item.name) == _default_of(item):
                setattr(cfg, item.name, getattr(shared, item.name))
    return cfg


def add_latents(cfg: ITConfig, request: LatentRequest | None, context: ExecutionContext) -> ITConfig:
    """A module configuration with the fields that the stack returns for a request for latent models.

    Raises:
        ConfigurationError: No stacked adapter can supply them, or the configuration sets such a field itself.
    """
    if request is None:
        return cfg
    answer: Mapping[str, Any] | None = context.hook.it_configure_latents(request=request)
    if answer is None:
        raise ConfigurationError(
            f"None of the stacked adapters ({', '.join(context.names)}) supplies the latent models that are requested: "
            f"{request}. Stack one that does, or leave `latents` out."
        )
    result: Any = copy.copy(cfg)
    waiting = result.awaiting_composition = dict(getattr(cfg, "awaiting_composition", {}))
    own = {item.name: item for item in fields(cfg)}
    for name, value in answer.items():
        if name in waiting or (name in own and getattr(cfg, name) != _default_of(own[name])):
            raise ConfigurationError(
                f"module_cfg sets {name!r}, and so does the answer to the request for latent models. Leave one of the "
                "two out: `latents`, or the field."
            )
        if name in own:
            setattr(result, name, value)
        else:
            waiting[name] = value
    return cast(ITConfig, result)


def _default_of(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _compose(
    cfg: Config, name: str | None, mixins: type | Sequence[type], context: ExecutionContext, kind: str
) -> Config:
    check_argument(f"AutoCompConfig.{kind}_name", name, str | None)
    check_argument(f"AutoCompConfig.{kind}_mixin", mixins, type | Sequence[type])
    own = [mixins] if isinstance(mixins, type) else list(mixins)
    for mixin in own:
        if not is_dataclass(mixin):
            raise ConfigurationError(f"The {kind} mixin {mixin.__qualname__} is not a dataclass. Decorate it.")
    added = [*own, *(base for _, base in context.bases(kind) if not isinstance(cfg, base))]
    values = {item.name: getattr(cfg, item.name) for item in fields(cfg) if item.init}
    values |= getattr(cfg, "awaiting_composition", {})
    if not added and not name and not getattr(cfg, "awaiting_composition", {}):
        return copy.copy(cfg)
    composed = _composed_class(name or type(cfg).__name__, (*added, type(cfg)))
    _refuse_unknown(values, composed, context, kind)
    return composed(**values)


def _composed_class(name: str, bases: tuple[type, ...]) -> Any:
    """A dataclass whose objects can be pickled although it is not an attribute of any module."""

    def reduce(cfg: Any) -> tuple[Any, ...]:
        return _unpickled, (name, bases), vars(cfg)

    namespace = {"__doc__": bases[-1].__doc__, "__reduce__": reduce}
    return make_dataclass(name, [], bases=bases, kw_only=True, namespace=namespace)


def _unpickled(name: str, bases: tuple[type, ...]) -> Any:
    """An object of a composed class without its values, which pickle sets."""
    return object.__new__(_composed_class(name, bases))


def _refuse_unknown(values: Mapping[str, Any], composed: type, context: ExecutionContext, kind: str) -> None:
    known = [item.name for item in fields(composed) if item.init]
    for field_name in values:
        if field_name not in known:
            near = get_close_matches(field_name, known, n=1)
            raise ConfigurationError(
                f"{kind} sets {field_name!r}, which no stacked adapter and no mixin declares. "
                + (f"Did you mean {near[0]!r}? " if near else "")
                + f"Stacked: {', '.join(context.names)}. Name the adapter that declares {field_name!r} in "
                f"adapter_ctx, or correct the name. Known fields: {', '.join(known)}."
            )
