"""What a run shows: numbers and tables of a store, logged metrics, and the configuration without credentials."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from interpretune.analysis import AnalysisRun
from interpretune.store import AnalysisStore
from interpretune.system import without_credentials
from interpretune_tensorboard.plain_values import markdown_table, plain_values, settings_by_path
from interpretune_tensorboard.tracked_module import Logged, TrackedModule

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

MEANT = ("bool", "float", "float64", "float32", "float16", "bfloat16")
"""Types of fields whose mean says something; numbers of labels and tokens have none."""


def write_analysis(writer: SummaryWriter, module: TrackedModule, analysis: AnalysisRun, logged: Logged) -> None:
    """Add all that there is of an analysis that has ended.

    Args:
        writer: The run.
        module: The session's module.
        analysis: The analysis, with its store.
        logged: What its steps logged.

    Raises:
        StoreError: The store is damaged.
    """
    from torch.utils.tensorboard.summary import hparams

    store, cfg = analysis.store, module.it_cfg
    numbers = {} if store is None else scalars_of(store)
    for name, value in numbers.items():
        writer.add_scalar(name, value)
    for name, table in ({} if store is None else tables_of(store, cfg.tensorboard_rows)).items():  # type: ignore[attr-defined]
        writer.add_text(f"tables/{name}", markdown_table(table))
    write_logged(writer, logged)
    settings = configuration_of(module, analysis)
    shown = json.dumps(settings, indent=2, ensure_ascii=False, default=str)
    writer.add_text("configuration", "\n".join(f"    {line}" for line in shown.splitlines()))
    events: Any = writer.file_writer  # add_hparams of the writer would make a run below this one
    for summary in hparams(settings_by_path(settings), numbers):
        events.add_summary(summary)


def write_logged(writer: SummaryWriter, logged: Logged) -> None:
    """Add metrics as ``logged/NAME``; the step counts the values of a name."""
    for name, values in logged.values.items():
        for step, value in enumerate(values):
            writer.add_scalar(f"logged/{name}", float(value), step)


def configuration_of(module: TrackedModule, analysis: AnalysisRun) -> dict[str, Any]:
    """Stack, session and analysis as plain values without credentials; objects in memory are named by their class."""
    store = analysis.store
    found = {
        "adapters": module.context.names if module.context is not None else (),
        "session": plain_values(module.session_cfg),
        "analysis": {
            "name": analysis.name,
            "folder": analysis.folder,
            "cfg": analysis.cfg,
            "about": None if store is None else store.manifest.about,
            "key": None if store is None else store.manifest.key,
        },
    }
    shown: dict[str, Any] = without_credentials(plain_values(found))
    return shown


def scalars_of(store: AnalysisStore) -> dict[str, float]:
    """Rows, batches, and means of fields.

    Returns:
        ``rows`` and ``batches``; ``mean/FIELD`` over examples in the unit of the field; ``mean_size/FIELD/ACTIVATION``
        of absolute values, over examples and latents alive in their batch.
    """
    found = {"rows": float(store.n_examples), "batches": float(store.n_batches)}
    plain = [item for item in store.fields.values() if item.dtype in MEANT and not item.shape and not item.ragged]
    wanted = [item.name for item in plain if item.per in ("example", "latent")]
    sums: dict[str, list[float]] = {}
    for batch in store.batches(wanted) if wanted else ():
        for name, value in batch.items():
            if isinstance(value, torch.Tensor):
                _add(sums, f"mean/{name}", value.double())
            elif value is not None:
                for hook, of_latents in value.items():
                    _add(sums, f"mean_size/{name}/{hook}", of_latents.values.double().abs())
    return found | {name: total / count for name, (total, count) in sorted(sums.items()) if count}


def _add(sums: dict[str, list[float]], name: str, values: torch.Tensor) -> None:
    total, count = sums.get(name, (0.0, 0))
    sums[name] = [total + float(values.sum()), count + values.numel()]


def tables_of(store: AnalysisStore, rows: int) -> dict[str, list[dict[str, Any]]]:
    """The tables of a store, with so many rows of each at most.

    Returns:
        ``examples``: the first ones; ``latents_by_FIELD``: examples and latents with the largest absolute values;
        and the first rows of each table of the whole run, under its name.
    """
    fields = store.fields.values()
    columns = [item.name for item in fields if item.per in ("example", "batch") and not item.shape]
    found: dict[str, list[dict[str, Any]]] = {}
    first: list[dict[str, Any]] = []
    for batch in store.record_batches(columns):
        first += batch.slice(0, rows - len(first)).to_pylist()
        if len(first) >= rows:
            break
    if first:
        found["examples"] = first
    for item in fields:
        if item.per == "latent" and item.dtype in MEANT and not item.shape and not item.ragged:
            found[f"latents_by_{item.name}"] = _largest(store, item.name, rows)
    return found | {name: table.slice(0, rows).to_pylist() for name, table in store.tables.items()}


def _largest(store: AnalysisStore, name: str, rows: int) -> list[dict[str, Any]]:
    """Read batch by batch: the largest so far are all that is kept."""
    largest: pa.Table | None = None
    for batch in store.latents([name]):
        table = pa.Table.from_batches([batch])
        if largest is not None:
            table = pa.concat_tables([largest, table])
        sizes = np.abs(table[name].to_numpy().astype(float))
        largest = table.take(np.argsort(-sizes, kind="stable")[:rows])
    return [] if largest is None else largest.to_pylist()
