"""The memory behind tensors and arrays, found from any object."""

from __future__ import annotations

import functools
import gc
import sys
import types
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from attrs import frozen
from torch import Tensor, nn

Storage: TypeAlias = tuple[str, int]
"""Device and address, which no two living storages share."""
CODE = (type, types.ModuleType, types.CodeType, types.FrameType, types.BuiltinFunctionType, str, bytes, int, float)
"""What holds no tensors of its own: to go on from there would reach the whole program."""


def is_of(item: Any, kinds: type | tuple[type, ...]) -> bool:
    """``isinstance`` without a look at the object: a proxy that is asked for its class may load what it stands for."""
    return issubclass(type(item), kinds)


@frozen
class Held:
    """A storage.

    Attributes:
        key: What it is known by.
        device: Where it lies.
        n_bytes: Its size, of which a view may show a part only.
    """

    key: Storage
    device: str
    n_bytes: int


def storages_of(value: Any) -> dict[Storage, Held]:
    """All storages that can be reached from an object, each once.

    Containers, attributes, slots, closures, gradients and what optimizers keep are followed; modules of code, classes
    and the global names of functions are not. A tensor that is made of others (sparse, wrapped) counts as these.

    Args:
        value: Anything.
    """
    return {held.key: held for item in reached(value) for held in _storages(item)}


def living_tensors() -> list[Tensor]:
    """All tensors that Python knows of, in any order; those that only a graph of gradients holds are not among them."""
    return [item for item in gc.get_objects() if is_of(item, Tensor)]


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors with a storage of their own that a tensor is made of; itself, where it is made of no others."""
    if tensor.is_sparse:
        parts: list[Tensor] = [tensor._indices(), tensor._values()]
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    elif (flatten := getattr(tensor, "__tensor_flatten__", None)) is not None:  # a subclass that wraps others
        parts = [getattr(tensor, name) for name in flatten()[0]]
    else:
        yield tensor
        return
    for part in parts:
        yield from plain_tensors(part)


def storage_of(tensor: Tensor) -> Held | None:
    """The storage of a plain tensor; None where it has no memory, as on the device ``meta``."""
    try:
        storage = tensor.untyped_storage()
        address, n_bytes = storage.data_ptr(), storage.nbytes()
    except (RuntimeError, NotImplementedError):  # a fake tensor, or one of another library without a storage
        return None
    return Held((str(tensor.device), address), str(tensor.device), n_bytes) if address and n_bytes else None


def lies_on(device: str, wanted: str | torch.device) -> bool:
    """Whether a device is the wanted one; without an index, each of its kind is."""
    found, asked = torch.device(device), torch.device(wanted)
    return found.type == asked.type and asked.index in (None, found.index)


def _storages(item: Any) -> Iterator[Held]:
    if is_of(item, Tensor):
        found = (storage_of(part) for part in plain_tensors(item))
        yield from (held for held in found if held is not None)
    elif is_of(item, np.ndarray) and item.nbytes:
        whole = item
        while is_of(whole.base, np.ndarray):
            whole = whole.base
        address = whole.__array_interface__["data"][0]  # that of the tensor, where numpy shows a tensor's memory
        yield Held(("cpu", address), "cpu", whole.nbytes)


def reached(value: Any) -> Iterator[Any]:
    """What can be reached from an object, itself included; see ``storages_of``."""
    names_of_code = {id(vars(module)) for module in list(sys.modules.values()) if is_of(module, types.ModuleType)}
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or is_of(item, CODE):
            continue
        seen.add(id(item))
        yield item
        waiting += (part for part in _referents(item) if id(part) not in names_of_code)


def _referents(item: Any) -> list[Any]:
    if is_of(item, Tensor):
        grad = item.grad if item.is_leaf and item.requires_grad else None
        return [*vars(item).values(), *([] if grad is None else [grad])]
    if is_of(item, types.FunctionType):
        return [item.__closure__, item.__defaults__, item.__kwdefaults__, vars(item)]
    if is_of(item, functools.partial):
        return [item.func, item.args, item.keywords, vars(item)]
    if is_of(item, nn.Module):
        return [vars(item)]
    return gc.get_referents(item)
