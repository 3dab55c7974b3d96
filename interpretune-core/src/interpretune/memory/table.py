"""What holds memory, by name: a table."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import frozen
from rich.filesize import decimal
from tabulate import tabulate
from torch import Tensor

from interpretune.errors import ConfigurationError
from interpretune.memory.storages import Held, Storage, is_of, lies_on, living_tensors, storages_of

if TYPE_CHECKING:
    import pandas as pd

NO_NAME = "(no name leads here)"


@frozen
class MemoryLine:
    """What one name holds.

    Attributes:
        name: In the namespace.
        what: Its class, and the shape of a tensor or an array.
        device: Where the memory lies; several, where the object has parts on each.
        n_bytes: Bytes that no line above has counted.
        shared: Bytes that a line above has counted.
    """

    name: str
    what: str
    device: str
    n_bytes: int
    shared: int


@frozen(repr=False)
class MemoryTable:
    """Lines from the largest holder down; each storage is counted once, where it is named first.

    Attributes:
        lines: The lines.
    """

    lines: tuple[MemoryLine, ...]

    @property
    def n_bytes(self) -> int:
        """All bytes of the table."""
        return sum(line.n_bytes for line in self.lines)

    def to_pandas(self) -> pd.DataFrame:
        """``name, what, device, bytes, shared``, a line each."""
        import pandas as pd

        rows = [(line.name, line.what, line.device, line.n_bytes, line.shared) for line in self.lines]
        return pd.DataFrame(rows, columns=["name", "what", "device", "bytes", "shared"])

    def __repr__(self) -> str:
        return tabulate(self._shown, headers="keys") + f"\n{decimal(self.n_bytes)} in all"

    def _repr_html_(self) -> str:
        return tabulate(self._shown, headers="keys", tablefmt="html") + f"<p>{decimal(self.n_bytes)} in all</p>"

    @property
    def _shown(self) -> list[dict[str, str]]:
        return [
            {
                "name": line.name,
                "object": line.what,
                "device": line.device,
                "size": decimal(line.n_bytes),
                "counted above": decimal(line.shared) if line.shared else "",
            }
            for line in self.lines
        ]


def memory_table(
    namespace: Mapping[str, Any] | types.ModuleType | object,
    *,
    device: str | torch.device | None = None,
    at_least: int = 0,
    unnamed: bool = True,
) -> MemoryTable:
    """What holds the memory of tensors and arrays, by name.

    An object holds what can be reached from it: a module its parameters and their gradients, a session its model, a
    list its tensors, an optimizer its state. A storage that several names reach is counted once, for the largest of
    them; the others say how much of theirs is counted above.

    Args:
        namespace: Names and objects: ``globals()``, ``locals()``, ``globals() | locals()``, or anything with
            attributes, such as a session or a module.
        device: Only memory there, ``cuda`` being that of all its indices; None: everywhere.
        at_least: Only objects that hold as many bytes.
        unnamed: Add a line for tensors that are alive and that no name of the namespace leads to.

    Raises:
        ConfigurationError: The namespace has no names.
    """
    names = namespace if isinstance(namespace, Mapping) else getattr(namespace, "__dict__", None)
    if names is None:
        raise ConfigurationError(
            f"The namespace is a {type(namespace).__name__}, which has no names. Give globals(), locals(), another "
            "mapping of names, or an object with attributes."
        )
    held = {str(name): _there(storages_of(value), device) for name, value in list(names.items())}
    kinds = {str(name): describe(value) for name, value in list(names.items())}
    order = sorted(held, key=lambda name: (-_bytes(held[name].values()), name))
    counted: set[Storage] = set()
    lines = []
    for name in order:
        lines.append(_line(name, kinds[name], held[name], counted))
        counted |= held[name].keys()
    if unnamed:
        tensors = living_tensors()
        lines.append(_line(NO_NAME, "tensors", _rest(tensors, counted, device), set()))
    return MemoryTable(tuple(line for line in lines if line.n_bytes + line.shared > max(0, at_least - 1)))


def describe(value: Any) -> str:
    """The class of an object, and the shape of a tensor or an array."""
    kind = type(value).__name__
    shaped = is_of(value, np.ndarray) or (is_of(value, Tensor) and not value.is_nested)
    return f"{kind} {tuple(value.shape)}" if shaped else kind


def _there(held: Mapping[Storage, Held], device: str | torch.device | None) -> dict[Storage, Held]:
    return {key: item for key, item in held.items() if device is None or lies_on(item.device, device)}


def _rest(tensors: list[Tensor], counted: set[Storage], device: str | torch.device | None) -> dict[Storage, Held]:
    found = {key: item for key, item in storages_of(tensors).items() if key not in counted}
    return _there(found, device)


def _line(name: str, what: str, held: Mapping[Storage, Held], counted: set[Storage]) -> MemoryLine:
    own = _bytes(item for key, item in held.items() if key not in counted)
    devices = ", ".join(sorted({item.device for item in held.values()}))
    return MemoryLine(name, what, devices, own, _bytes(held.values()) - own)


def _bytes(items: Any) -> int:
    return sum(item.n_bytes for item in items)
