"""Attribution graphs in files of their own, numbers and all: safetensors, with the rest as JSON in its header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from interpretune.errors import StoreError
from interpretune.system.whole_file import output_file

FORMAT = "interpretune attribution graph 1"
TEXTS = ("kind", "name")
"""Columns of nodes that are no numbers."""
MATRICES = ("adjacency", "linear_totals", "exact")


def save_graph(path: Path, nodes: pd.DataFrame, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write nodes, tensors and what else there is to know.

    Raises:
        OutputError: The file cannot be written.
    """
    columns = {
        f"nodes.{name}": torch.tensor(nodes[name].to_numpy(copy=True)) for name in nodes.columns if name not in TEXTS
    }
    told = {"about": about, "texts": {name: nodes[name].tolist() for name in TEXTS}, "columns": list(nodes.columns)}
    written = save(
        {name: item.contiguous().cpu() for name, item in (columns | tensors).items()},
        {FORMAT: json.dumps(told)},
    )
    with output_file(path, "choose another place") as place:
        place.write_bytes(written)


def open_graph(path: Path) -> tuple[pd.DataFrame, dict[str, Tensor], dict[str, Any]]:
    """Read them back.

    Raises:
        StoreError: The file is not there, damaged, or something else.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        told = json.loads(header[FORMAT])
        own = {name: tensors.pop(f"nodes.{name}").numpy() for name in told["columns"] if name not in TEXTS}
        nodes = pd.DataFrame({name: told["texts"][name] if name in TEXTS else own[name] for name in told["columns"]})
        for name in MATRICES:
            if name in tensors:
                tensors[name] = tensors[name].reshape(len(nodes), len(nodes))
        return nodes, tensors, told["about"]
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} cannot be read as an attribution graph: {type(error).__name__}: {error}. Make it again."
        ) from error
