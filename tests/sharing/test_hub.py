"""Data set repositories on a stand-in for the Hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from interpretune import StoreError
from interpretune.sharing import HubRepository, load_store, save_store
from tests.sharing.stores import dense, written

ROOT = Path(__file__).parents[2]


def test_the_hub(tmp_path: Path) -> None:
    """The checks against the stand-in: the hub's client reads once whether it is offline, and here it is."""
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider"),
            *("--basetemp", str(tmp_path / "checks"), "tests/sharing/hub_checks.py"),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_offline_mode_is_named(tmp_path: Path) -> None:
    repository = HubRepository("me/run", token="hf_x", endpoint="http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"the hub client is offline\. Unset HF_HUB_OFFLINE"):
        load_store(repository, tmp_path / "copy")
    with pytest.raises(StoreError, match=r"hf://datasets/me/run cannot be written: the hub client is offline"):
        save_store(written(tmp_path / "s", dense(0, range(4))), repository)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("address", "repo_id", "revision"),
    [
        ("hf://datasets/me/run", "me/run", None),
        ("hf://datasets/me/run/", "me/run", None),
        ("hf://datasets/me/run@v1.0", "me/run", "v1.0"),
        ("hf://datasets/me/run@refs/pr/3", "me/run", "refs/pr/3"),
    ],
)
def test_addresses(address: str, repo_id: str, revision: str | None) -> None:
    assert HubRepository.parse(address) == HubRepository(repo_id, revision)


@pytest.mark.parametrize(
    "address", ["hf://me/run", "hf://datasets/run", "hf://datasets/me/run/shards", "hf://buckets/a/b"]
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(StoreError, match="is no data set repository"):
        load_store(address)
