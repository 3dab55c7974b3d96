"""Digests of tensors by dtype, shape and values, wherever they are and however they lie in memory."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from interpretune.hashing.content import Content, UnknownState

BOOKKEEPING = frozenset({"_is_hf_initialized", "_no_weight_decay", "_no_reinit"})
"""Attributes that loaders leave on parameters."""


def is_plain_tensor(value: Any) -> bool:
    """Whether dtype, shape and values say all about a tensor."""
    return (
        type(value) in (Tensor, nn.Parameter, nn.Buffer)
        and value.layout is torch.strided
        and not (value.is_quantized or value.is_nested)
        and value.device.type != "meta"
        and not vars(value).keys() - BOOKKEEPING
    )


def tensor_digest(tensor: Tensor) -> bytes:
    """Digest of a plain tensor; whether it wants a gradient changes no number.

    Of 128 bits, by XXH3: it tells weights that differ by accident apart at the speed of memory, and is no seal against
    an adversary, who could as well edit the results.
    """
    dense = tensor.detach().resolve_conj().resolve_neg().contiguous().cpu()
    digest = xxhash.xxh3_128(f"tensor {dense.dtype} {tuple(dense.shape)} ".encode())
    if dense.numel():
        digest.update(dense.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def digests_of_weights(module: nn.Module) -> dict[int, bytes]:
    """Digests of the plain parameters and buffers of a module and its parts, by the tensor's id.

    Hashing leaves the interpreter to other threads, so that several tensors are hashed at once.
    """
    groups = [vars(part)[group] for part in nn.Module.modules(module) for group in ("_parameters", "_buffers")]
    found = {id(item): item for group in groups for item in group.values() if is_plain_tensor(item)}
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        return dict(zip(found, threads.map(tensor_digest, found.values()), strict=True))


def tensor_content(tensor: Tensor) -> Content:
    """What a tensor holds beside plain values: a subclass, a sparse or quantized layout, attributes of its own.

    ``UnknownState`` where its values cannot be read.
    """
    kind = type(tensor)
    parts: list[tuple[str, Any]] = [(".class", kind), (".shape", tuple(tensor.shape)), (".dtype", tensor.dtype)]
    parts += [(f".{name}", item) for name, item in sorted(vars(tensor).items()) if name not in BOOKKEEPING]
    if tensor.device.type == "meta":
        raise UnknownState("it is on the device meta and has no values")
    if hasattr(tensor, "__tensor_flatten__"):
        names, context = tensor.__tensor_flatten__()
        parts += [(f".{name}", getattr(tensor, name)) for name in names]
        return Content("tensor", [*parts, (".context", context)])
    held = tensor.detach()
    plain = held if type(held) is Tensor else held.as_subclass(Tensor)
    return Content("tensor", [*parts, *_values(plain)])


def _values(tensor: Tensor) -> list[tuple[str, Any]]:
    if tensor.is_quantized:
        if tensor.qscheme() is not torch.per_tensor_affine:
            raise UnknownState(f"a tensor quantized as {tensor.qscheme()}")
        return [(".int_repr", tensor.int_repr()), (".scale", tensor.q_scale()), (".zero", tensor.q_zero_point())]
    if tensor.is_nested:
        return [(f"[{i}]", row) for i, row in enumerate(tensor.unbind())]
    if tensor.layout is torch.strided:
        return [(".values", tensor)]
    if tensor.layout is torch.sparse_coo:
        joined = tensor.coalesce()
        return [(".indices", joined.indices()), (".values", joined.values())]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        inner = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        inner = (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    else:
        raise UnknownState(f"a tensor of layout {tensor.layout}")
    return [(".layout", tensor.layout), (".outer", inner[0]), (".inner", inner[1]), (".values", inner[2])]
