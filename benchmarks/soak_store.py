"""Kills the writers of a store at random moments, lets them go on, and compares what comes out with an untouched run.

Runs of one, two and three processes alternate. Shards are tiny, so that many kills fall into moving the journal. After
each kill the store must open, and must have every batch that a writer was told is written. A finished run must equal
the untouched one, row for row.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import random
import tempfile
from collections import Counter
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from tabulate import tabulate

from interpretune.errors import StoreBusyError
from interpretune.store import AnalysisStore, StoreWriter
from interpretune.store.fields import Field, Per
from interpretune.store.values import LatentValues

FIELDS = (
    Field("logit_diffs"),
    Field("tokens", "int64", ragged=True),
    Field("loss", "float", Per.batch),
    Field("activations", "bfloat16", Per.latent),
    Field("effects", "float", Per.latent),
)
ROWS_PER_SHARD = 12
LONGEST = 0.2
"""Seconds that writers have at most until they are killed, from before they open the store."""


def forking() -> ForkServerContext:
    """Makes processes in an instant: their parent has imported all that they need, also what Arrow imports late."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.soak_store", "pyarrow.compute", "pandas"])
    return context


def values_of(batch: int) -> tuple[list[int], dict[str, Any]]:
    """Examples of a batch, two to four, and its results."""
    draw = torch.Generator().manual_seed(batch)
    size = 2 + batch % 3
    alive = {hook: torch.randperm(512, generator=draw)[:20].sort().values for hook in ("first", "second")}
    values = {hook: torch.randn(size, 20, generator=draw).relu() for hook in alive}
    return [4 * batch + row for row in range(size)], {
        "logit_diffs": torch.randn(size, generator=draw),
        "tokens": [torch.arange(batch % 7 + row) for row in range(size)],
        "loss": torch.rand((), generator=draw),
        "activations": {hook: LatentValues(alive[hook], values[hook].bfloat16(), 512) for hook in alive},
        "effects": {hook: LatentValues(alive[hook], -values[hook], 512) for hook in alive},
    }


def work(folder: Path, n_batches: int, rank: int, world_size: int, told: Connection) -> None:
    """Write the share of one process, saying what is written, and seal the store where it is the last."""
    told.send(-1)
    writer = StoreWriter.create(
        folder,
        FIELDS,
        {"run": "soak"},
        key="soak",
        n_batches=n_batches,
        rank=rank,
        world_size=world_size,
        rows_per_shard=ROWS_PER_SHARD,
    )
    for batch in range(rank, n_batches, world_size):
        if batch not in writer.done:
            writer.write(batch, *values_of(batch))
            told.send(batch)
    writer.close()
    if not writer.missing():
        with contextlib.suppress(StoreBusyError):  # the other closes after this, and seals
            writer.seal()


def rows_of(store: AnalysisStore) -> pa.Table:
    """All rows, by example."""
    return pa.Table.from_batches(store.record_batches()).sort_by("example")


class Soak:
    """Runs that are killed.

    Attributes:
        found: Kills by what they interrupted, and what the runs came to.
    """

    def __init__(self, scratch: Path, n_batches: int, seed: int) -> None:
        self._scratch, self._n_batches = scratch, n_batches
        self._random = random.Random(seed)
        self._context = forking()
        self.found: Counter[str] = Counter()
        here, there = multiprocessing.Pipe(duplex=False)
        untouched = self._context.Process(target=work, args=(scratch / "untouched", n_batches, 0, 1, there))
        untouched.start()
        there.close()
        said = _heard(here)
        untouched.join()
        assert len(said) == n_batches
        self._expected = rows_of(AnalysisStore.open(scratch / "untouched"))

    def run(self, kills: int) -> None:
        """Start runs until so many of their starts were killed."""
        while self.found["kills"] < kills:
            number = self.found["runs"]
            folder, world_size = self._scratch / f"run-{number}", 1 + number % 3
            written: set[int] = set()
            while self._start(folder, world_size, written, kill=self.found["kills"] < kills and not _sealed(folder)):
                pass
            store = AnalysisStore.open(folder)
            assert store.complete, "no process sealed the store"
            store.verify()
            rows = rows_of(store)
            assert rows.num_rows == self._expected.num_rows, "rows were lost or doubled"
            assert rows.equals(self._expected), "rows differ"
            self.found["runs"] += 1
            self.found["rows compared"] += rows.num_rows

    def _start(self, folder: Path, world_size: int, written: set[int], *, kill: bool) -> bool:
        """Start all processes of a run, and kill them together.

        Returns:
            Whether they were killed; else they have finished.
        """
        ends, processes = [], []
        for rank in range(world_size):
            here, there = multiprocessing.Pipe(duplex=False)
            processes.append(
                self._context.Process(target=work, args=(folder, self._n_batches, rank, world_size, there))
            )
            processes[-1].start()
            there.close()
            ends.append(here)
        said = [end.recv() for end in ends]  # all have begun
        if kill:
            processes[0].join(self._random.uniform(0, LONGEST))
            for process in processes:
                process.kill()
        for end in ends:
            said += _heard(end)
        for process in processes:
            process.join()
        codes = {process.exitcode for process in processes}
        assert codes <= ({0, -9} if kill else {0}), f"a process failed: {codes}"
        written |= {batch for batch in said if batch >= 0}
        if -9 in codes:
            self.found["kills"] += 1
            self._look(folder, written)
            return True
        return False

    def _look(self, folder: Path, written: set[int]) -> None:
        """See what a kill left."""
        if not (folder / "manifest.json").exists():
            self.found["before the manifest"] += 1
            assert not written
            return
        store = AnalysisStore.open(folder)
        assert written <= set(store.batch_indices), "a written batch is lost"
        sealed = {index for path in folder.glob("shards/*.parquet") for index in _batches_of(path)}
        left = {int(path.stem.rpartition("-")[2]) for path in folder.glob("journal/*.arrow")}
        if list(folder.glob("shards/.*")):
            self.found["while a shard was written"] += 1
        elif sealed & left:
            self.found["between a shard and its journal"] += 1
        elif list(folder.glob("journal/.*")):
            self.found["while a batch was written"] += 1
        elif store.complete:
            self.found["after sealing"] += 1
        else:
            self.found["elsewhere"] += 1


def _sealed(folder: Path) -> bool:
    return (folder / "manifest.json").exists() and AnalysisStore.open(folder).complete


def _batches_of(path: Path) -> list[int]:
    return pa.parquet.read_table(path, columns=["batch"], partitioning=None).column("batch").to_pylist()


def _heard(end: Connection) -> list[int]:
    """All that a process said until it ended."""
    said = []
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            said.append(end.recv())
    end.close()
    return [batch for batch in said if batch >= 0]


def main() -> None:
    """Run the soak and print what was interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="kills (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=300, help="batches of a run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="of the moments")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        soak = Soak(Path(scratch), options.batches, options.seed)
        soak.run(options.kills)
    print(tabulate(sorted(soak.found.items(), key=lambda item: -item[1])))
    print("Every finished store equals the untouched one; no row was lost or doubled.")


if __name__ == "__main__":
    main()
