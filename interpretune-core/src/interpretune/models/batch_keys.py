"""Checks that a model takes all keys of a batch: transformers models silently ignore unknown ones."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Collection, Mapping
from typing import Any, cast, get_args, get_type_hints

from attrs import frozen
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import TransformersKwargs

from interpretune.errors import DataError

READ_FROM_KEYWORDS = ("return_dict", "cache_position", "shift_labels")
"""Arguments that models of transformers read from their ``**kwargs`` without declaring them."""


@frozen(kw_only=True, eq=False)
class ForwardSignature:
    """The arguments that a model's forward takes.

    Attributes:
        named: Its parameters by name.
        taken: Those, and what it reads from its ``**kwargs``; None: possibly anything.
    """

    named: frozenset[str]
    taken: frozenset[str] | None


def forward_signature(model: nn.Module) -> ForwardSignature:
    """What the forward of a model takes, beneath wrappers of compilers and adapters; read once for each class."""
    while True:
        unwrap: Any = getattr(model, "get_base_model", None)
        inner = unwrap() if unwrap is not None else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    inner_class: Any = type(getattr(model, "base_model", model))
    return _signature_of(cast("Any", type(model)), inner_class)


def check_batch_keys(model: nn.Module, batch: Mapping[str, Any], also: Collection[str] = ()) -> None:
    """Refuse a batch with keys that the model would ignore.

    Args:
        model: The Hugging Face model that runs the batch.
        batch: Arguments of its forward.
        also: Additional keys that a wrapper of the model takes.

    Raises:
        DataError: It names the keys.
    """
    taken = forward_signature(model).taken
    if taken is None or batch.keys() <= taken:
        return
    extra = sorted(batch.keys() - taken - set(also))
    if extra:
        name = type(model).__name__
        raise DataError(
            f"The batch holds {', '.join(map(repr, extra))}, which {name} does not take and would ignore. Take it out "
            "of the batch in your step, or leave the column out of the data set: "
            f"ITDataModuleConfig(signature_columns=[...]) lists the columns to keep. {name} takes "
            f"{', '.join(sorted(forward_signature(model).named))}."
        )


@functools.lru_cache(maxsize=256)
def _signature_of(model_class: type, inner_class: type) -> ForwardSignature:
    forward: Any = model_class.forward  # type: ignore[attr-defined]
    named, keywords = _parameters(forward)
    if keywords is None:
        return ForwardSignature(named=frozenset(named), taken=frozenset(named))
    if not issubclass(model_class, PreTrainedModel):
        return ForwardSignature(named=frozenset(named), taken=None)
    inner_named, inner_keywords = _parameters(inner_class.forward)  # type: ignore[attr-defined]
    known = {*TransformersKwargs.__annotations__, *keywords, *(inner_keywords or ()), *READ_FROM_KEYWORDS}
    return ForwardSignature(named=frozenset(named), taken=frozenset({*named, *inner_named, *known}))


def _parameters(forward: Any) -> tuple[set[str], set[str] | None]:
    """Names of parameters, and what ``**kwargs`` is declared to hold; None where there is no ``**kwargs``."""
    named, keywords = set(), None
    for name, parameter in inspect.signature(forward).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            keywords = _declared_keywords(inspect.unwrap(forward), name)
        elif parameter.kind is not parameter.VAR_POSITIONAL and name != "self":
            named.add(name)
    return named, keywords


def _declared_keywords(function: Any, name: str) -> set[str]:
    """Keys of the typed dictionary in ``**kwargs: Unpack[...]``."""
    annotation = function.__annotations__.get(name)
    if isinstance(annotation, str):
        holder = type("_", (), {"__annotations__": {name: annotation}, "__module__": function.__module__})
        try:
            names = vars(sys.modules[function.__module__])
            annotation = get_type_hints(holder, globalns=names, include_extras=True)[name]
        except (NameError, KeyError, TypeError):  # a name that only type checkers import
            return set()
    return {key for item in get_args(annotation) for key in getattr(item, "__annotations__", ())}
