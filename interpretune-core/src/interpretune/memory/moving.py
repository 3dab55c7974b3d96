"""Large tensors moved off a device, or into a file, and back."""

from __future__ import annotations

import contextlib
import gc
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import define, frozen
from rich.filesize import decimal
from tabulate import tabulate
from torch import Tensor, nn

from interpretune.errors import ConfigurationError
from interpretune.memory.holders import holders_of_each
from interpretune.memory.storages import (
    Held,
    Storage,
    is_of,
    lies_on,
    living_tensors,
    plain_tensors,
    reached,
    storage_of,
    storages_of,
)
from interpretune.memory.table import describe
from interpretune.system.html_table import html_table
from interpretune.system.model_lock import ModelLock, model_lock

LINES_SHOWN, HOLDERS_SHOWN = 5, 3


@frozen
class MovedStorage:
    """A storage that was moved.

    Attributes:
        what: The largest of the tensors that show it: class and shape.
        device: Where it was.
        n_bytes: Its size.
        holders: What refers to these tensors.
    """

    what: str
    device: str
    n_bytes: int
    holders: tuple[str, ...]


@define(repr=False, eq=False)
class MovedOff:
    """What was moved; as a context manager, it moves back at the end.

    Attributes:
        moved: The storages, largest first.
        stayed: Those that cannot be moved, largest first: a tensor that shows them cannot be changed in place.
        to: Where the moved ones lie.
    """

    moved: tuple[MovedStorage, ...]
    stayed: tuple[MovedStorage, ...]
    to: str
    _shown: list[tuple[torch.device, bool, list[Tensor]]]  # where each storage was, and whether pinned
    _lock: ModelLock
    _files: contextlib.ExitStack

    @property
    def n_bytes(self) -> int:
        """How much was moved."""
        return _bytes(self.moved)

    def back(self) -> None:
        """Move all back to where it was; a second time it does nothing.

        After an error, such as that a device is full, what is not back yet is where it was moved; call it again.
        """
        with self._lock:
            while self._shown:
                device, pinned, tensors = self._shown[-1]
                copied = _copied(tensors[0].untyped_storage(), device)
                _show(tensors, copied.pin_memory() if pinned else copied)
                self._shown.pop()
        self._files.close()

    def __enter__(self) -> MovedOff:
        return self

    def __exit__(self, *_: object) -> None:
        self.back()

    def __repr__(self) -> str:
        left_out = len(self._shown_rows) - LINES_SHOWN
        more = f"\nand {left_out:,} more" if left_out > 0 else ""
        return f"{self._heading}\n{tabulate(self._shown_rows[:LINES_SHOWN], headers='keys')}{more}"

    def _repr_html_(self) -> str:
        return html_table(self._heading, self._shown_rows, LINES_SHOWN)

    @property
    def _heading(self) -> str:
        stayed = f", {decimal(_bytes(self.stayed))} cannot be moved" if self.stayed else ""
        return f"{decimal(self.n_bytes)} moved to {self.to}{stayed}"

    @property
    def _shown_rows(self) -> list[dict[str, str]]:
        return [
            {
                "object": item.what,
                "was on": item.device,
                "size": decimal(item.n_bytes),
                "held by": ", ".join(item.holders[:HOLDERS_SHOWN]) + " ..." * (len(item.holders) > HOLDERS_SHOWN),
            }
            for item in self.moved
        ]


def move_off(
    objects: Any = None,
    *,
    device: str | torch.device | None = None,
    to: str | torch.device | Path = "cpu",
    at_least: int = 0,
) -> MovedOff:
    """Move the memory of tensors elsewhere and keep the tensors, so that models and caches can be moved back.

    Memory is moved a storage at a time, with all tensors that show it, whoever holds them: tied weights stay tied, and
    no forgotten view keeps the old memory. A model must not run until it is back. Arrays of numpy keep the memory that
    they showed, and share it with no tensor afterwards; so do other processes that share memory with this one. Pinned
    memory is pinned again when it is back.

    Args:
        objects: A model, a tensor, a list, or anything else that holds them; None: all tensors that are alive.
        device: Only what lies there; None: wherever it lies.
        to: A device; or a folder, where files take the memory, which also frees that of the CPU.
        at_least: Only storages of as many bytes.

    Returns:
        What was moved and what refers to it. ``back()`` moves it back, and so does the end of a ``with`` block.

    Raises:
        ConfigurationError: Neither objects nor a device are given; or the folder does not exist.
    """
    if objects is None and device is None:
        raise ConfigurationError("move_off has nothing to move. Give objects, the device whose tensors go, or both.")
    if isinstance(to, Path) and not to.is_dir():
        raise ConfigurationError(f"{to} is no folder that exists. Give one, or a device, to move tensors to.")
    if not isinstance(to, Path) and torch.device(to).type == "meta":
        raise ConfigurationError("The device meta keeps no numbers. Give a folder to free the memory of the CPU.")
    lock = model_lock(nn.ModuleList(_modules(objects)))
    with lock:
        return _moved_off(lock, objects, device, to, at_least)


def _moved_off(
    lock: ModelLock, objects: Any, device: str | torch.device | None, to: str | torch.device | Path, at_least: int
) -> MovedOff:
    """The same, while no model runs that has the tensors."""
    groups, fixed = _by_storage(objects, device, at_least)
    if not isinstance(to, Path):
        groups = {held: tensors for held, tensors in groups.items() if not lies_on(held.device, to)}
    order = sorted(groups, key=lambda held: -held.n_bytes)
    holders = dict(zip(order, _holders([groups[held] for held in order]), strict=True))
    told = {
        held: MovedStorage(describe(max(groups[held], key=torch.numel)), held.device, held.n_bytes, holders[held])
        for held in order
    }
    result = MovedOff(
        moved=tuple(told[held] for held in order if held.key not in fixed),
        stayed=tuple(told[held] for held in order if held.key in fixed),
        to=str(to),
        shown=[],
        lock=lock,
        files=contextlib.ExitStack(),
    )
    with contextlib.ExitStack() as undo:
        undo.callback(result.back)
        folder = (
            Path(result._files.enter_context(tempfile.TemporaryDirectory(dir=to))) if isinstance(to, Path) else None
        )
        for number, held in enumerate(order):
            if held.key not in fixed:
                tensors = groups[held]
                storage = tensors[0].untyped_storage()
                was = tensors[0].device, storage.is_pinned()
                _show(tensors, _filed(storage, folder / str(number)) if folder else _copied(storage, str(to)))
                result._shown.append((*was, tensors))
        undo.pop_all()
    return result


def _by_storage(
    objects: Any, device: str | torch.device | None, at_least: int
) -> tuple[dict[Held, list[Tensor]], set[Storage]]:
    """The tensors that show each storage asked for; and the keys of those that one of them does not let go."""
    wanted = None if objects is None else storages_of(objects)
    groups: dict[Held, list[Tensor]] = defaultdict(list)
    fixed = set()
    for tensor in living_tensors():
        for part in plain_tensors(tensor):
            held = storage_of(part)
            if held is None or held.n_bytes < at_least or (wanted is not None and held.key not in wanted):
                continue
            if device is None or lies_on(held.device, device):
                groups[held].append(part)
                if part is not tensor or not _can_be_set(part):
                    fixed.add(held.key)
    return groups, fixed


def _can_be_set(tensor: Tensor) -> bool:
    """Whether a tensor is no more than its part of a storage."""
    more = tensor.is_conj() or tensor.is_neg() or tensor.is_quantized or tensor.is_nested
    return not (more or tensor.is_inference())


def _holders(groups: Sequence[Sequence[Tensor]]) -> list[tuple[str, ...]]:
    """What refers to the tensors of each group."""
    told = iter(holders_of_each([tensor for group in groups for tensor in group], besides=groups))
    return [tuple(dict.fromkeys(item for _ in group for item in next(told))) for group in groups]


def _show(tensors: Sequence[Tensor], storage: torch.UntypedStorage) -> None:
    """Let tensors show another storage, each its part of it: all of them, or after an error none."""
    before = tensors[0].untyped_storage()
    with contextlib.ExitStack() as undo:
        for tensor in tensors:
            _show_part(tensor, storage)
            undo.callback(_show_part, tensor, before)
        undo.pop_all()


def _show_part(tensor: Tensor, storage: torch.UntypedStorage) -> None:
    shown = torch.empty(0, dtype=tensor.dtype, device=storage.device)
    tensor.data = shown.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())


def _copied(storage: torch.UntypedStorage, device: str | torch.device) -> torch.UntypedStorage:
    copied = torch.UntypedStorage(storage.nbytes(), device=torch.device(device))
    copied.copy_(storage, non_blocking=False)
    return copied


def _filed(storage: torch.UntypedStorage, path: Path) -> torch.UntypedStorage:
    """A storage that is a file, none of which has been read yet."""
    torch.empty(0, dtype=torch.uint8).set_(storage.cpu()).numpy().tofile(path)
    return torch.from_file(str(path), shared=True, size=storage.nbytes(), dtype=torch.uint8).untyped_storage()


def _modules(objects: Any) -> list[nn.Module]:
    """The modules in objects; all that are alive where none are given."""
    found = gc.get_objects() if objects is None else reached(objects)
    return [item for item in found if is_of(item, nn.Module)]


def _bytes(items: Sequence[MovedStorage]) -> int:
    return sum(item.n_bytes for item in items)
