"""Data set repositories on a stand-in for the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from interpretune import StoreError
from interpretune.sharing import HubRepository, load_store, save_store
from tests.other_process import run_script
from tests.sharing.stores import dense, written

ONLINE = """
import importlib, os, sys
import huggingface_hub.constants
import pytest
for name in [name for name in os.environ if "proxy" in name.lower()]:
    del os.environ[name]
importlib.reload(huggingface_hub.constants)
quiet = ("-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
sys.exit(pytest.main(["--noconftest", *quiet, "--basetemp", sys.argv[1], "tests/sharing/hub_checks.py"]))
"""


def test_the_hub(tmp_path: Path) -> None:
    """The checks against the stand-in: the hub's client reads once whether it is offline, and here it is."""
    environment = {
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    script = tmp_path / "online.py"
    script.write_text(ONLINE)
    printed, _ = run_script(script, tmp_path / "checks", **environment)
    assert "passed" in printed


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
