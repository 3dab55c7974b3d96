"""Finds the splits of a data set: in a file, in a folder, on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import datasets

from interpretune.errors import DataError
from interpretune.questions.json_lines import json_table
from interpretune.questions.offered_rows import offered_splits
from interpretune.system.offered import ROWS


def load_splits(source: str | Path) -> Mapping[str, datasets.Dataset]:
    """The splits of a data set by name; those of a file, and of a folder without splits, are called ``validation``.

    Args:
        source: A JSONL file, a folder saved by ``datasets``, ``name:address`` of a source that an installed package
            offers, or a hub data set and its subset such as ``super_glue/rte``.

    Raises:
        AdapterError: A package that offers the source cannot be used.
        DataError: The source cannot be found or read.
    """
    if (offered := offered_splits(source)) is not None:
        return offered
    path = Path(str(source)).expanduser()
    if path.is_file():
        return {"validation": json_table(path)}
    if path.is_dir():
        try:
            loaded = datasets.load_from_disk(str(path))
        except (OSError, ValueError) as error:
            raise DataError(
                f"The folder {path} does not hold a data set that `datasets` saved: {error}. Save one with "
                "save_to_disk, or give a JSONL file."
            ) from error
        return loaded if isinstance(loaded, datasets.DatasetDict) else {"validation": loaded}
    name, _, subset = str(source).rpartition("/")
    ways: list[tuple[str, str | None]] = [(name or subset, subset if name else None)]
    if name and "/" not in name:
        ways.append((str(source), None))
    errors: list[Exception] = []
    for repository, part in ways:
        remote = _of_hub(repository, part, errors)
        if remote is not None:
            return remote
    told = [
        f"as {repository!r}{f' with the subset {part!r}' if part else ''}: {type(error).__name__}: {error}"
        for (repository, part), error in zip(ways, errors, strict=True)
    ]
    sources = ", ".join(ROWS.offered()) or "no source of rows"
    raise DataError(
        f"The data {str(source)!r} is neither a file nor a folder here, nor does it name a source that an installed "
        f"package offers ({sources}), and it cannot be loaded from the hub, "
        f"{'; '.join(told)}. Give a JSONL file, a folder saved by datasets, or check the network. Prompts themselves "
        "go into a list, even one alone; those of a task are interpretune.tasks.find_task(name).held_out()."
    ) from errors[-1]


def _of_hub(repository: str, subset: str | None, errors: list[Exception]) -> Mapping[str, datasets.Dataset] | None:
    """The splits of a hub data set; None where they cannot be had, with the error added to ``errors``."""
    try:
        found: Mapping[str, datasets.Dataset] = datasets.load_dataset(repository, subset)
    except Exception as error:  # noqa: BLE001 - the hub client raises many kinds; all mean that the data cannot be had
        errors.append(error)
        return None
    return found
