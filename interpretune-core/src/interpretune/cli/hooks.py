"""``interpretune hooks MODEL``: the hook points of a model, with their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from interpretune.activations.hook_names import aliases, canonical_names, split_layer
from interpretune.activations.inputs import probe_inputs
from interpretune.backends.backend import AnalysisBackend
from interpretune.config.module import ITConfig
from interpretune.config.shared import ITSharedConfig
from interpretune.errors import HookPointError
from interpretune.session.session import ITSession, ITSessionConfig


@frozen
class HookPointRow:
    """A hook point of a model.

    Attributes:
        name: Canonical name.
        aliases: Other names of the hook point, the most usual first.
        shape: Its axes: ``batch``, ``pos`` and numbers.
        about: What stands there.
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[str | int, ...]
    about: str


@frozen
class ModelHooks:
    """What ``interpretune hooks`` prints."""

    model: str
    adapters: tuple[str, ...]
    hook_points: tuple[HookPointRow, ...]
    own: tuple[str, ...]

    def table(self) -> list[dict[str, str]]:
        """Rows of a table in which layers that are alike share one."""
        layers: dict[tuple[Any, ...], list[int]] = {}
        for row in self.hook_points:
            layer, point = split_layer(row.name) or (None, row.name)
            alias = row.aliases[0] if layer is None else row.aliases[0].replace(f".{layer}.", ".{i}.", 1)
            name = point if layer is None else f"layers.{{i}}.{point}"
            layers.setdefault((name, alias, row.shape, row.about), []).extend([] if layer is None else [layer])
        return [
            {
                "name": name,
                "i": _ranges(where),
                "alias": alias,
                "shape": f"[{', '.join(map(str, shape))}]",
                "about": about,
            }
            for (name, alias, shape, about), where in layers.items()
        ]


def find_hooks(model: str, adapters: Sequence[str], cache_dir: Path | None = None) -> ModelHooks:
    """Load a model and find its hook points by a forward of two tokens (``InterpretuneError``: what is wrong)."""
    shared = ITSharedConfig(model_name_or_path=model, cache_dir=cache_dir)
    session = ITSession(ITSessionConfig(adapter_ctx=tuple(adapters), shared_cfg=shared, module_cfg=ITConfig()))
    backend = session.module.backend
    known = backend.hook_point_names()
    n_layers = 1 + max((found[0] for name in known if (found := split_layer(name)) is not None), default=-1)
    canonical = {name: point for name, point in canonical_names(n_layers) if _has(backend, name)}
    shapes = _shapes(backend, list(canonical))
    rows = tuple(
        HookPointRow(name, tuple(aliases(name)), ("batch", "pos", *shapes[name][2:]), point.about)
        for name, point in canonical.items()
    )
    own = tuple(name for name in known if name not in canonical and split_layer(name) is None)
    return ModelHooks(type(backend.model).__name__, session.context.names, rows, own)


def _has(backend: AnalysisBackend, name: str) -> bool:
    with suppress(HookPointError):
        return backend.resolve_hook_point(name) == name
    return False


@torch.no_grad()
def _shapes(backend: AnalysisBackend, names: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    _, seen = backend.run_with_cache(probe_inputs(backend.model_device), names)
    return {name: tuple(values.shape) for name, values in seen.items()}


def _ranges(numbers: Sequence[int]) -> str:
    """Whole numbers as ranges: ``0-3, 5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
