"""What a store of results costs: bytes beside dense arrays, rates of writing and reading, and memory.

Made-up results: for each example and each of two latent models some sixty active latents, whose frequencies fall off
as those of words do, with an activation and an effect. Writing and each way of reading run in a process of their own,
for few and for many examples; the peak of their memory must not follow the number of examples.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tabulate import tabulate

from interpretune.store import AnalysisStore, StoreWriter
from interpretune.store.fields import Field, Per
from interpretune.store.values import LatentValues

HOOKS = ("blocks.15.hook_resid_post.hook_sae_acts_post", "blocks.22.hook_resid_post.hook_sae_acts_post")
FIELDS = (Field("logit_diffs"), Field("activations", per=Per.latent), Field("effects", per=Per.latent))
RESULT = Path(__file__).parent / "out" / "store.json"
KEY = "synthetic"


class Results:
    """Made-up results of batches."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._draw = np.random.default_rng(0)
        frequency = 1 / (np.arange(options.width) + options.alive)
        self._ends = np.cumsum(frequency / frequency.sum())

    def batch(self, n: int) -> dict[str, Any]:
        """Results of the next ``n`` examples."""
        activations, effects = {}, {}
        for hook in HOOKS:
            drawn = self._draw.random((n, self._options.alive))
            ids = np.searchsorted(self._ends, drawn).clip(max=self._options.width - 1)
            latents, place = np.unique(ids, return_inverse=True)
            rows = np.repeat(np.arange(n), self._options.alive)
            values = np.zeros((2, n, len(latents)), dtype=np.float32)
            values[0, rows, place.reshape(-1)] = self._draw.gamma(2, 1, rows.shape)
            values[1] = values[0] * self._draw.normal(0, 0.1, values[0].shape)
            known = torch.from_numpy(latents)
            activations[hook] = LatentValues(known, torch.from_numpy(values[0]), self._options.width)
            effects[hook] = LatentValues(known, torch.from_numpy(values[1]), self._options.width)
        diffs = torch.from_numpy(self._draw.normal(size=n).astype(np.float32))
        return {"logit_diffs": diffs, "activations": activations, "effects": effects}


def write(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Write a store; the time that making results up takes is not counted."""
    results, seconds, times = Results(options), 0.0, []
    starts = range(0, options.examples, options.batch)
    begin = time.perf_counter()
    writer = StoreWriter.create(folder, FIELDS, {}, key=KEY, n_batches=len(starts))
    seconds += time.perf_counter() - begin
    for index, start in enumerate(starts):
        n = min(options.batch, options.examples - start)
        values = results.batch(n)
        begin = time.perf_counter()
        writer.write(index, range(start, start + n), values)
        times.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    writer.seal()
    seconds += time.perf_counter() - begin + sum(times)
    return {"seconds": seconds, "batch_ms": float(np.median(times)) * 1e3}


def read_batches(store: AnalysisStore) -> int:
    """Every batch as it was written."""
    return sum(len(batch["effects"][HOOKS[0]].values) for batch in store.batches())


def read_effects(store: AnalysisStore) -> int:
    """One field of every batch."""
    return sum(len(batch["effects"][HOOKS[0]].values) for batch in store.batches(["effects"]))


def read_diffs(store: AnalysisStore) -> int:
    """A field without latents."""
    return sum(len(batch["logit_diffs"]) for batch in store.batches(["logit_diffs"]))


def read_rows(store: AnalysisStore) -> int:
    """Arrow rows."""
    return sum(rows.num_rows for rows in store.record_batches())


def read_latents(store: AnalysisStore) -> int:
    """Arrow rows of latents."""
    assert sum(rows.num_rows for rows in store.latents())
    return store.n_examples


READS: dict[str, Callable[[AnalysisStore], int]] = {
    "batches": read_batches,
    "batches, effects only": read_effects,
    "batches, logit differences only": read_diffs,
    "rows": read_rows,
    "rows of latents": read_latents,
}


def run_one(options: argparse.Namespace) -> dict[str, float]:
    """One task in this process: seconds, and its memory before and at the peak."""
    pa.array(np.zeros(1))  # imports what Arrow imports late
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if options.task == "write":
        found = write(options.folder, options)
    else:
        begin = time.perf_counter()
        assert READS[options.task](AnalysisStore.open(options.folder)) == options.examples
        found = {"seconds": time.perf_counter() - begin}
    return {**found, "before_bytes": before, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def measure(options: argparse.Namespace, examples: int, scratch: Path) -> dict[str, Any]:
    """All tasks for a number of examples, each in a fresh process."""
    folder = scratch / f"store-{examples}"
    found: dict[str, Any] = {"examples": examples}
    for task in ("write", *READS):
        command = [sys.executable, "-m", "benchmarks.store", "--task", task, "--folder", str(folder)]
        for name, value in {**vars(options), "examples": examples}.items():
            if name not in ("task", "folder", "few"):
                command += [f"--{name}", str(value)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        found[task] = json.loads(run.stdout)
        print(f"{examples} examples, {task}: {found[task]['seconds']:.1f} s", flush=True)
    found["bytes"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    found["dense_bytes"] = examples * len(HOOKS) * options.width * 2 * 4
    found["ratio"] = found["dense_bytes"] / found["bytes"]
    return found


def main() -> None:
    """Run the benchmark, print a table and write ``benchmarks/out/store.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100_000, help="rows (default: %(default)s)")
    parser.add_argument("--few", type=int, default=10_000, help="rows that memory is compared with (%(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="examples of a batch (default: %(default)s)")
    parser.add_argument("--width", type=int, default=65_536, help="latents of a dictionary (default: %(default)s)")
    parser.add_argument("--alive", type=int, default=60, help="active latents of an example (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and Arrow (default: %(default)s)")
    parser.add_argument("--task", choices=("write", *READS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pa.set_cpu_count(options.threads)
    if options.task:
        print(json.dumps(run_one(options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        few, many = (measure(options, examples, Path(scratch)) for examples in (options.few, options.examples))
    growth = {task: many[task]["peak_bytes"] / few[task]["peak_bytes"] for task in ("write", *READS)}
    figures = {
        **{name: getattr(options, name) for name in ("batch", "width", "alive", "threads")},
        "few": few,
        "many": many,
        "peak_growth": growth,
        "pyarrow": pa.__version__,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    stored, dense = many["bytes"] / 1e6, many["dense_bytes"] / 1e9
    print(f"{many['examples']} examples: {stored:.0f} MB; dense: {dense:.1f} GB, {many['ratio']:.0f} times as much.")
    print(f"A batch of {options.batch} is written in {many['write']['batch_ms']:.2f} ms.")
    rows = [
        [
            task,
            many["examples"] / many[task]["seconds"],
            many["bytes"] / many[task]["seconds"] / 1e6,
            few[task]["peak_bytes"] / 1e6,
            many[task]["peak_bytes"] / 1e6,
            (many[task]["peak_bytes"] - many[task]["before_bytes"]) / 1e6,
        ]
        for task in growth
    ]
    headers = ["", "examples/s", "MB/s", f"peak MB, {few['examples']}", f"peak MB, {many['examples']}", "of that, own"]
    print(tabulate(rows, headers, floatfmt=".0f"))


if __name__ == "__main__":
    main()
