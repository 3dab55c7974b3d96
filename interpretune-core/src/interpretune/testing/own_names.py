"""A backend's own names of hook points, beside the modules of the plain model that they name.

All names are tried in one forward: its rows are the same row again and again, and each edit changes a row of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from interpretune.activations.hook_names import AFTER_BLOCKS, BEFORE_BLOCKS, canonical, split_layer
from interpretune.activations.inputs import ModelInputs
from interpretune.testing.comparing import TOLERANCE
from interpretune.testing.workbench import Bench

IN, OUT = ":in", ":out"
_OUTSIDE = {point.name for point in (*BEFORE_BLOCKS, *AFTER_BLOCKS)}

Edit = Callable[[Tensor], Tensor]


@frozen(eq=False)
class RowsEdited:
    """A forward of equal rows, of which each was edited at a hook point of its own.

    Attributes:
        logits: ``[names, pos, vocab]``.
        given: What edits were given for their own rows, by name; only of hook points that a forward reached, with a
            tensor of numbers for each row.
    """

    logits: Tensor
    given: dict[str, Tensor]

    def agrees(self, other: RowsEdited, row: int) -> bool:
        """Whether a row has the same logits as in another forward."""
        size = float(other.logits[row].abs().max())
        return float((self.logits[row] - other.logits[row]).abs().max()) <= TOLERANCE * size


def own_names(backend: Any) -> list[str]:
    """The names that a backend lists beside the canonical ones and their aliases."""
    names = list(backend.hook_point_names())
    return [name for name in names if canonical(name) not in _OUTSIDE and split_layer(name) is None]


def names_of_modules(plain: Any, names: Sequence[str]) -> list[str]:
    """Those that are paths of modules of the plain model, with ``:in`` or ``:out`` appended."""
    paths = dict(plain.named_modules())
    return [name for name in names if name.endswith((IN, OUT)) and name.rpartition(":")[0] in paths]


def equal_rows(bench: Bench, n: int) -> ModelInputs:
    """One row of the bench, so many times."""
    return ModelInputs.from_batch(bench.padded([bench.even_rows[0]] * n, "left"))


def edited_by(bench: Bench, backend: Any, names: Sequence[str]) -> RowsEdited:
    """Edits made by a backend at each of the names."""
    given: dict[str, Tensor] = {}
    inputs = equal_rows(bench, len(names))
    with backend.hooked({name: _of_row(i, given, name, len(names)) for i, name in enumerate(names)}):
        return RowsEdited(backend.run_model(inputs, None), given)


def edited_in_modules(bench: Bench, plain: Any, names: Sequence[str], *, in_place: bool = False) -> RowsEdited:
    """Edits made by torch hooks at modules of the plain model; ``in_place``: of the very tensors that these get."""
    given: dict[str, Tensor] = {}
    modules = dict(plain.named_modules())
    with ExitStack() as stack:
        for i, name in enumerate(names):
            path, _, side = name.rpartition(":")
            edit = _of_row(i, given, name, len(names))
            made = _writing(edit) if in_place else edit
            handle = _before(modules[path], made) if f":{side}" == IN else _after(modules[path], made)
            stack.callback(handle.remove)
        tokens = equal_rows(bench, len(names)).tokens.cpu()
        positions = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
        return RowsEdited(plain(input_ids=tokens, position_ids=positions, use_cache=False).logits, given)


def _of_row(row: int, given: dict[str, Tensor], name: str, n: int) -> Edit:
    def edit(activations: Tensor) -> Tensor:
        if not isinstance(activations, Tensor) or not activations.is_floating_point() or len(activations) != n:
            return activations  # token ids, or one tensor for all rows
        given[name] = activations[row].detach().clone()
        edited = activations.clone()
        edited[row] = 0.7 * activations[row] + 0.1
        return edited

    return edit


def _writing(edit: Edit) -> Edit:
    return lambda activations: activations.copy_(edit(activations))


def _before(module: nn.Module, edit: Edit) -> Any:
    def run(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for i, value in enumerate(args):
            if isinstance(value, Tensor):
                return (*args[:i], edit(value), *args[i + 1 :]), kwargs
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                return args, {**kwargs, name: edit(value)}
        return args, kwargs

    return module.register_forward_pre_hook(run, with_kwargs=True)


def _after(module: nn.Module, edit: Edit) -> Any:
    def run(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0]), *output[1:]) if output and isinstance(output[0], Tensor) else output
        if isinstance(output, Tensor):
            return edit(output)
        first = next((name for name, value in getattr(output, "items", dict)() if isinstance(value, Tensor)), None)
        if first is not None:
            output[first] = edit(output[first])
        return output

    return module.register_forward_hook(run)
