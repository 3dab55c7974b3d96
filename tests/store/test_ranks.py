"""Several processes write one store; merged, it is the one that a single process writes."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from filelock import FileLock, Timeout

from benchmarks.soak_store import forking
from interpretune.errors import StoreBusyError, StoreError
from interpretune.store import AnalysisStore, folder as store_folder, journal, sealing
from interpretune.store.contents import Contents
from interpretune.store.manifest import Manifest
from tests.store.damage import flip_bit
from tests.store.synthetic import (
    N_BATCHES,
    assert_whole,
    examples_of,
    interrupt,
    sealed,
    values_of,
    write,
    writer_of,
)


def write_rank(folder: Path, rank: int, world_size: int) -> None:
    """What each process does: its share, and sealing where it finds all there; the last one that closes can."""
    writer = writer_of(folder, rank=rank, world_size=world_size)
    write(writer, *range(rank, N_BATCHES, world_size))
    writer.close()
    if not writer.missing():
        with contextlib.suppress(StoreBusyError):  # another has written its last batch and not closed yet
            writer.seal()


def rows_by_example(store: AnalysisStore) -> pa.Table:
    return pa.Table.from_batches(store.record_batches()).sort_by("example")


def test_ranks_in_processes_make_the_store_of_one_process(tmp_path: Path) -> None:
    context = forking()
    ranks = [context.Process(target=write_rank, args=(tmp_path / "merged", rank, 3)) for rank in range(3)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0, 0]
    merged, single = AnalysisStore.open(tmp_path / "merged"), sealed(tmp_path / "single")
    assert merged.complete
    assert merged.manifest.world_size == 3
    assert_whole(merged, *range(N_BATCHES))
    assert rows_by_example(merged).equals(rows_by_example(single))
    merged.verify()


def test_a_run_of_two_is_finished_by_one(tmp_path: Path) -> None:
    for rank in range(2):
        interrupt(tmp_path, rank, rank=rank, world_size=2)
    with writer_of(tmp_path) as writer:
        assert writer.done == {0, 1}
        write(writer, 2, 3, 4, 5)
        assert_whole(writer.seal(), *range(N_BATCHES))
    assert not list((tmp_path / "journal").iterdir())


def test_a_store_is_not_sealed_while_a_rank_has_batches_in_its_journal(tmp_path: Path) -> None:
    one, other = (writer_of(tmp_path, rank=rank, world_size=2, rows_per_shard=100) for rank in range(2))
    write(one, 0, 2, 4)
    write(other, 1, 3, 5)
    with pytest.raises(StoreBusyError, match="Another writer is at work on rank 1"):
        one.seal()
    assert_whole(other.seal(), *range(N_BATCHES))
    one.seal().verify()


def test_a_batch_of_two_ranks_is_refused(tmp_path: Path) -> None:
    one, other = (writer_of(tmp_path, rank=rank, world_size=2) for rank in range(2))
    write(one, 0, 1, 2)
    write(other, 2, 3, 4, 5)
    one.close()
    with pytest.raises(StoreError, match=r"Batch 2 is there twice, in r00000-.* and in r00001-"):
        other.seal()


def test_ranks_of_unlike_dtypes_are_refused(tmp_path: Path) -> None:
    one, other = (writer_of(tmp_path, rank=rank, world_size=2) for rank in range(2))
    write(one, 0, 1, 2)
    other.write(3, examples_of(3), {**values_of(3), "logit_diffs": values_of(3)["logit_diffs"].double()})
    write(one, 4, 5)
    one.close()
    other.close()
    with pytest.raises(
        StoreError, match="keeps logit_diffs as a torch.float64 .* All processes of a run compute in one"
    ):
        AnalysisStore.open(tmp_path)


@pytest.mark.parametrize("step", ["write_journal", "write_shard"])
def test_a_writer_that_is_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    done = getattr(journal, step)

    def interrupted(*arguments: Any) -> None:
        done(*arguments)
        raise KeyboardInterrupt

    with writer_of(tmp_path) as writer:
        write(writer, 0)
        with monkeypatch.context() as patch:
            patch.setattr(journal, step, interrupted)
            with pytest.raises(KeyboardInterrupt):
                write(writer, 1)
        write(writer, *(batch for batch in range(N_BATCHES) if batch not in writer.done))
        assert_whole(writer.seal(), *range(N_BATCHES))


def test_a_killed_roll_doubles_nothing(tmp_path: Path) -> None:
    """The shard is there and its journal files are not removed yet."""
    interrupt(tmp_path, 0, 1, 2)
    shutil.copytree(tmp_path / "journal", tmp_path / "before")
    writer_of(tmp_path).close()
    for path in (tmp_path / "before").iterdir():
        path.rename(tmp_path / "journal" / path.name)
    shutil.rmtree(tmp_path / "before")
    (tmp_path / "journal" / ".r00000-000000000003.arrow.77.partial").write_bytes(b"half")
    (tmp_path / "shards" / ".r00000-000001.parquet.77.partial").write_bytes(b"half")
    assert_whole(AnalysisStore.open(tmp_path), 0, 1, 2)
    with writer_of(tmp_path) as writer:
        assert writer.done == {0, 1, 2}
        write(writer, 3, 4, 5)
        assert_whole(writer.seal(), *range(N_BATCHES))
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".partial", ".arrow")]


def test_a_rank_that_starts_while_another_tidies_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 looks at what rank 1 left; rank 1 starts in that moment, waits for it, and is no busy store."""
    interrupt(tmp_path, 1, rank=1, world_size=2)
    tidying, arrived = threading.Event(), threading.Event()
    recover = journal.Journal.recover

    def slow(self: journal.Journal, *arguments: object) -> None:
        if threading.current_thread().name == "tidy":
            tidying.set()
            assert arrived.wait(60)
        recover(self, *arguments)

    @contextlib.contextmanager
    def arriving(folder: Path) -> Iterator[None]:
        arrived.set()
        with store_folder.holding_manifest(folder):
            yield

    monkeypatch.setattr(journal.Journal, "recover", slow)
    tidy = threading.Thread(target=sealing.move_journals, args=(tmp_path,), name="tidy")
    tidy.start()
    assert tidying.wait(60)
    monkeypatch.setattr("interpretune.store.writer.holding_manifest", arriving)
    try:
        with writer_of(tmp_path, rank=1, world_size=2) as writer:
            assert writer.done == {1}
    finally:
        arrived.set()
        tidy.join()


def test_a_rank_that_mends_while_another_has_done_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 finds a damaged shard; before it goes on, rank 0 has found it too and has written its batches again."""
    with writer_of(tmp_path, world_size=2) as writer:
        write(writer, 0, 2)
    shard = tmp_path / "shards" / "r00000-000000.parquet"
    shard.write_bytes(flip_bit(shard.read_bytes(), random.Random(0)))
    look, looked = Contents.of_folder, []

    def slow(folder: Path, **options: Any) -> Contents:
        found = look(folder, **options)
        looked.append(len(found.damaged))
        if len(looked) == 1:
            with (
                pytest.warns(UserWarning, match=r"2 batches \(0, 2\) will be run again"),
                writer_of(folder, world_size=2) as other,
            ):
                write(other, 0, 2)
        return found

    monkeypatch.setattr(Contents, "of_folder", slow)
    with writer_of(tmp_path, rank=1, world_size=2) as writer:
        assert writer.done == {0, 2}
        assert looked[0] == 1
        write(writer, 1, 3, 4, 5)
        assert_whole(writer.seal(), *range(N_BATCHES))
    assert not shard.exists()


def test_the_number_of_a_lost_shard_is_not_given_again(tmp_path: Path) -> None:
    """Whoever has read the manifest before would take another file for the one that it lists."""
    with writer_of(tmp_path) as writer:
        write(writer, 0, 1, 2, 3)
    for lost in (1, 2):
        (tmp_path / "shards" / f"r00000-{lost:06d}.parquet").unlink()
        with pytest.warns(UserWarning, match=r"2 batches \(2, 3\) will be run again"), writer_of(tmp_path) as writer:
            write(writer, 2, 3)
        assert Manifest.read(tmp_path).files[-1] == f"shards/r00000-{lost + 1:06d}.parquet"
    with writer_of(tmp_path) as writer:
        write(writer, 4, 5)
        assert_whole(writer.seal(), *range(N_BATCHES))
    assert "next_shard" not in (tmp_path / "manifest.json").read_text(encoding="utf-8")


def test_the_manifest_is_held_by_one_thread_again_and_again(tmp_path: Path) -> None:
    """Locks of ranks are never waited for, and this one within itself by its own thread only."""
    (tmp_path / "locks").mkdir()
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        with store_folder.holding_manifest(tmp_path):
            inside.set()
        done.set()

    thread = threading.Thread(target=other)
    with store_folder.holding_manifest(tmp_path), store_folder.holding_manifest(tmp_path):
        thread.start()
        with pytest.raises(Timeout):
            FileLock(tmp_path / "locks" / "manifest.lock", timeout=0).acquire()
        assert not inside.is_set()
    assert done.wait(60)
    thread.join()
