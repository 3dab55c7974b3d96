"""Executes notebooks of the examples: each in a process of its own, without a hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lazy_loader

nbclient, nbformat = map(lazy_loader.load, ("nbclient", "nbformat"))  # the tests of most runs need neither
ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def executed(path: Path, cache: Path, folder: Path) -> Any:
    """A notebook with the outputs of a run; what is stored stays as it is.

    Args:
        path: The notebook.
        cache: Has the offline model, and gets the dictionaries that are trained.
        folder: Where it runs and writes its files.

    Raises:
        CellExecutionError: A cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )
    client.execute(env=_environment(cache, folder))
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
    for _, outputs in outputs_of(notebook):
        for item in outputs:
            if {"text/html", "image/png"} & item.get("data", {}).keys():
                item.data.pop("text/plain", None)  # the same once more, with all digits
    return notebook


def outputs_of(notebook: Any) -> Iterator[tuple[Any, list[Any]]]:
    """The cells of code with their outputs."""
    return ((cell, cell.outputs) for cell in notebook.cells if cell.cell_type == "code")


def kinds_of(notebook: Any) -> list[list[str]]:
    """For each cell of code what it shows: names of streams, and types of what is displayed."""
    return [
        [item.get("name") or " ".join(sorted(item.get("data", [item.output_type]))) for item in outputs]
        for _, outputs in outputs_of(notebook)
    ]


def _environment(cache: Path, folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "INTERPRETUNE_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",  # bars are for front ends
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm misses the widgets that would show them
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONDONTWRITEBYTECODE": "",
    }
