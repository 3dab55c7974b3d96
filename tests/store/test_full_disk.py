"""Full disks and folders that may not be written: said in words, and what is there stays readable."""

from __future__ import annotations

import errno
import os
import textwrap
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from interpretune.errors import StoreError
from interpretune.store import AnalysisStore
from tests.other_process import run_script
from tests.store.synthetic import N_BATCHES, assert_whole, sealed, write, writer_of


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_in_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with writer_of(tmp_path) as writer:
        write(writer, 0, 1, 2)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            with pytest.raises(StoreError, match=r"no room for .*journal.*No space left.*Free some space") as caught:
                write(writer, 3)
        assert isinstance(caught.value.__cause__, OSError)
        assert_whole(AnalysisStore.open(tmp_path), 0, 1, 2)
        write(writer, 3, 4, 5)
        assert_whole(writer.seal(), *range(N_BATCHES))


def test_a_disk_that_fills_up_in_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with writer_of(tmp_path) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(pq.ParquetWriter, "write_table", full)
            write(writer, 0)
            with pytest.raises(StoreError, match=r"no room for .*shards.*is kept and can be read"):
                write(writer, 1)
            assert_whole(AnalysisStore.open(tmp_path), 0, 1)
            with pytest.raises(StoreError, match="no room for"):
                writer.close()
        assert not list(tmp_path.glob("shards/*"))
        assert not list(tmp_path.glob("shards/.*"))
    with writer_of(tmp_path) as writer:
        assert writer.done == {0, 1}
        write(writer, 2, 3, 4, 5)
        assert_whole(writer.seal(), *range(N_BATCHES))


def test_a_disk_that_fills_up_in_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with writer_of(tmp_path) as writer:
        write(writer, *range(N_BATCHES))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", full)
            with pytest.raises(StoreError, match=r"no room for .*manifest\.json"):
                writer.seal()
    assert_whole(AnalysisStore.open(tmp_path), *range(N_BATCHES))
    with writer_of(tmp_path) as writer:
        assert writer.seal().complete


def test_a_limit_of_the_operating_system(tmp_path: Path) -> None:
    script = tmp_path / "limited.py"
    script.write_text(
        textwrap.dedent(
            """
            import resource, sys
            from pathlib import Path
            from interpretune.errors import StoreError
            from tests.store.synthetic import examples_of, values_of, writer_of

            writer = writer_of(Path(sys.argv[1]), rows_per_shard=1000)
            writer.write(0, examples_of(0), values_of(0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
            try:
                writer.write(1, examples_of(1), values_of(1))
            except StoreError as error:
                sys.exit(7 if "There is no room for" in str(error) and "journal" in str(error) else 8)
            """
        )
    )
    run_script(script, tmp_path / "store", returncode=7)
    assert_whole(AnalysisStore.open(tmp_path / "store"), 0)
    assert not list((tmp_path / "store" / "journal").glob(".*"))


def read_only(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs this may be allowed everything, hence the pretence."""
    sealed(tmp_path)
    remedy = "may not be written .*Read-only file system.*Choose a folder that you may write"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", read_only)
        with pytest.raises(StoreError, match=remedy) as caught:
            writer_of(tmp_path)
        assert isinstance(caught.value.__cause__, OSError)
    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "acquire", read_only)
        with pytest.raises(StoreError, match=remedy):
            writer_of(tmp_path)
        store = AnalysisStore.open(tmp_path)  # reading needs no lock
        assert_whole(store, *range(N_BATCHES))
        store.verify()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o555)
    with pytest.raises(StoreError, match=r"may not be written .*change the rights"):
        writer_of(folder / "store")
