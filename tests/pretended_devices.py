"""Devices for machines that have one: tensors of the CPU that say that they are elsewhere, and that do not mix.

Arithmetic is that of the CPU. As on CUDA, an operation on tensors of two devices is an error, unless it moves one of
them, or one of them has no axes or is an index on the CPU. What a real device rounds in its own way does not show, nor
what is faster there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

HOME, AWAY = torch.device("lazy:0"), torch.device("lazy:1")
"""torch knows the name, has no such device, and lets the threads of the CPU run its backward."""
MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
TAKES_INDICES = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
CPU = torch.device("cpu")


class Elsewhere(Tensor):
    """A tensor that says that it is on another device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> Elsewhere:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "layout": inner.layout}
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=device, **layout)
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"Elsewhere({self.inner!r}, device={self.device})"

    def tolist(self) -> Any:
        """Values; torch reads them past ``__torch_dispatch__``."""
        return self.inner.tolist()


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    name = func.overloadpacket._qualified_op_name
    asked = kwargs.get("device")
    given = [item for item in tree_iter((args, kwargs)) if isinstance(item, Tensor)]
    if name in TAKES_INDICES:
        given = [item for item in given if item.device != CPU or item is args[0]]
    found = {item.device for item in given if item.ndim or item.device != CPU}
    if len(found) > 1 and func not in MOVES:
        raise RuntimeError(f"Expected all tensors to be on the same device, and {name} got {sorted(map(str, found))}.")
    device = torch.device(asked) if asked is not None else args[0].device if func in MOVES else next(iter(found), CPU)
    kwargs = {**kwargs, "device": CPU} if asked is not None else kwargs
    result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if name.endswith("_") and not name.endswith("__"):
        return args[0]
    return result if device == CPU else tree_map(lambda item: _put(item, device), result)


def _inner(item: Any) -> Any:
    return item.inner if isinstance(item, Elsewhere) else item


def _put(item: Any, device: torch.device) -> Any:
    return Elsewhere(item, device) if isinstance(item, Tensor) and not isinstance(item, Elsewhere) else item


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Functions that make tensors of data do so below ``__torch_dispatch__``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


@contextlib.contextmanager
def pretended_devices() -> Iterator[None]:
    """A block in which ``HOME`` and ``AWAY`` are devices."""
    with _Functions(), _Dispatch():
        yield
