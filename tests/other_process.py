"""Test scripts run in a process of their own, and the number of threads that they have."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def run_script(script: Path, *arguments: object, returncode: int = 0, **environment: str) -> None:
    """Run a script of the tests with one thread and without CUDA, and see how it ends.

    Args:
        script: The script.
        *arguments: Given to it as text.
        returncode: How it must end; minus the signal that kills it.
        **environment: Further variables.
    """
    run = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        check=False,
        cwd=ROOT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "CUDA_VISIBLE_DEVICES": "",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == returncode, run.stderr[-3000:]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As in the scripts: sums depend on the number of threads in the last digit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
