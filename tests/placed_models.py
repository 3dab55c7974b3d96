"""Models that accelerate has placed: with weights in memory or on disk that are filled in before each forward."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import cpu_offload, dispatch_model
from torch import nn

logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # it says of each that it must not be moved


def in_memory(model: Any, folder: Path) -> Any:
    """All weights are kept beside the model."""
    return cpu_offload(model)


def on_disk(model: Any, folder: Path) -> Any:
    """All but the embedding and the first block are on disk."""
    return dispatch_model(model, device_map(model), offload_dir=folder)


def device_map(model: Any) -> dict[str, str]:
    """Embeddings and the first block in memory, all above on disk."""
    (path,) = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    parent = path.rpartition(".")[0]
    parts = [
        f"{parent}.{name}" for name, part in model.get_submodule(parent).named_children() if f"{parent}.{name}" != path
    ]
    blocks = [f"{path}.{number}" for number in range(len(model.get_submodule(path)))]
    low = [name for name in parts if "norm" not in name and "ln_f" not in name] + blocks[:1]
    return {name: "cpu" if name in low else "disk" for name in (*parts, *blocks, "lm_head")}


PLACEMENTS: dict[str, Callable[[Any, Path], Any]] = {"memory": in_memory, "disk": on_disk}
