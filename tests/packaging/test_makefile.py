"""``make demo`` where nobody planned it: a path with spaces, a home that cannot be written, two at once, no network."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("Makefile", "constraints.txt", "pyproject.toml", "*/pyproject.toml", "examples/*/pyproject.toml")
SAID = """#!/bin/sh
echo begin "$XDG_CACHE_HOME" "$@" >>said
sleep 0.3
echo end >>said
"""


@pytest.fixture
def clone(tmp_path):
    """A folder with a Makefile and an environment in which a script stands for the command and none for pip."""
    folder = tmp_path / "a b"
    for file in (file for pattern in NEEDED for file in ROOT.glob(pattern)):
        place = folder / file.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    command = folder / ".venv" / "bin" / "interpretune"
    command.parent.mkdir(parents=True)
    command.write_text(SAID)
    command.chmod(0o755)
    (folder / ".venv" / ".runnable").touch()
    return folder


def make(folder: Path, target: str = "demo", **variables: str) -> subprocess.Popen[str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MAKE", "MFLAGS"))}
    command = ["make", target, f"PYTHON={sys.executable}", 'ARGS=--data "x y"']
    return subprocess.Popen(
        command, cwd=folder, env={**known, **variables}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_two_at_once_take_turns_and_install_nothing(clone):
    """In a path with spaces, where the home cannot be written; pip is not there to be called."""
    runs = [make(clone, HOME="/proc/nobody") for _ in range(2)]
    printed = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], printed
    begin = f"begin {clone}/.make/cache demo --data x y"
    assert (clone / "said").read_text().splitlines() == [begin, "end"] * 2


def test_the_cache_of_the_user_is_taken_where_it_can_be_written(clone):
    run = make(clone, HOME=str(clone.parent))
    assert (run.communicate(timeout=60), run.returncode)[1] == 0
    assert (clone / "said").read_text().splitlines()[0] == "begin  demo --data x y"


def test_what_another_has_set_up_meanwhile_is_not_set_up_again(clone):
    """Two fresh clones of one folder: the second waits, and finds that all is there."""
    stamp = clone / ".venv" / ".runnable"
    stamp.unlink()
    (clone / ".make").mkdir()
    with (clone / ".make" / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = make(clone, HOME=str(clone.parent))
        assert run.stdout
        assert "Another make in this folder is at it" in run.stdout.readline()
        stamp.touch()
    printed, _ = run.communicate(timeout=60)
    assert run.returncode == 0, printed
    assert "pip" not in printed


def test_what_tests_other_versions_waits_for_one_that_does(clone):
    """The second could remove the environment in which the first runs."""
    (clone / ".make").mkdir()
    for target in ("lowest", "newest"):
        with (clone / ".make" / f"{target}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            run = make(clone, target=f"test-{target}", HOME=str(clone.parent))
            assert run.stdout
            assert "Another make in this folder is at it" in run.stdout.readline()
        run.communicate(timeout=60)
        assert run.returncode  # there are no tests in this folder
