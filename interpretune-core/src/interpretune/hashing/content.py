"""What a thing holds, written down for hashing: its kind and its parts, or plain bytes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import PurePath
from types import GenericAlias, MappingProxyType
from typing import Any

import numpy as np
import torch
from attrs import frozen


class UnknownState(Exception):  # noqa: N818 - it is caught where the place of the thing is known, and never leaves
    """A thing whose content cannot be read; the text, if any, says why."""


@frozen(eq=False)
class Content:
    """A thing as its kind and its parts.

    Attributes:
        kind: Things of different kinds are never equal.
        parts: Each with what leads to it from the thing (``.name``, ``[0]``), which counts too.
        unordered: The order of the parts means nothing, and neither do their labels.
    """

    kind: str
    parts: Sequence[tuple[str, Any]]
    unordered: bool = False


@frozen(eq=False)
class Raw:
    """A part that is known by its digest already."""

    digest: bytes


@frozen
class Noted:
    """Names of what a library notes while it runs, which no result depends on.

    Attributes:
        names: Of attributes, and of functions that it hooks in.
        library: Top-level package whose objects and functions they are; None: of any.
    """

    names: frozenset[str] = frozenset()
    library: str | None = None

    def of(self, module: object) -> frozenset[str]:
        """The names that count for a class or a function of a module, by the module's name."""
        return self.names if self.library in (None, str(module).partition(".")[0]) else frozenset()


def leaf_of(value: Any) -> bytes | None:
    """Bytes that tell a plain value from all others; None: it is not plain."""
    kind = type(value)
    if kind in _EMPTY:  # most of what a model of many parts holds is empty
        return None if value else _EMPTY[kind]
    if kind in _BY_REPR:
        return f"{kind.__name__} {value!r}".encode()
    if kind is str:
        return b"str " + value.encode("utf-8", "surrogatepass")
    if kind is bytes:
        return b"bytes " + value
    if kind is Raw:
        return DIGEST + value.digest
    if isinstance(value, np.generic) and kind is not np.void and kind is not np.object_:
        return f"numpy {value.dtype.str} ".encode() + value.tobytes()
    if isinstance(value, PurePath):
        return f"path {value}".encode("utf-8", "surrogatepass")
    if isinstance(value, torch.device):
        return b"device"  # where something runs is not what it computes
    if isinstance(value, logging.Logger):
        return f"logger {value.name}".encode()
    if isinstance(value, GenericAlias) or kind.__module__ == "typing" or kind.__name__ == "UnionType":
        return f"annotation {value!r}".encode()
    return None


DIGEST = b"digest "
_EMPTY: dict[type[Any], bytes] = {
    list: b"empty list",
    tuple: b"empty tuple",
    dict: b"empty mapping",
    MappingProxyType: b"empty mapping",
    set: b"empty set",
    frozenset: b"empty set",
}
_BY_REPR = frozenset(
    {
        bool,
        int,
        float,
        complex,
        type(None),
        type(...),
        type(NotImplemented),
        range,
        torch.dtype,
        torch.layout,
        torch.memory_format,
        torch.Size,
    }
)
