"""Test scripts in processes of their own, and the number of threads that they have.

Processes are forked from one that is forked itself when all tests are collected: libraries and tests are imported,
which takes seconds, and no test has run. What is about imports starts another interpreter instead.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import runpy
import signal
import socket
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parents[1]
LIMIT = 300
"""Seconds after which a script is killed."""

_requests: list[Connection] = []
"""To the process that forks, where there is one."""


class Job(NamedTuple):
    """A script that is to run.

    Attributes:
        argv: The script and its arguments.
        environment: All variables.
        out: File of what it prints.
        err: File of its errors.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    out: Path
    err: Path


def begin_here() -> None:
    """Scripts begin with what is imported now."""
    ours, theirs = Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of Python warn of threads; that of xdist only reads
        gc.freeze()
        child = os.fork()
    if not child:
        ours.close()
        _serve(theirs)
    theirs.close()
    _requests.append(ours)


def run_script(script: Path, *arguments: object, returncode: int = 0, **environment: str) -> tuple[str, str]:
    """Run a script of the tests with one thread and without CUDA, and see how it ends.

    Args:
        script: The script.
        *arguments: Given to it as text.
        returncode: How it must end; minus the signal that kills it.
        **environment: Further variables.

    Returns:
        What it printed, and its errors.
    """
    (told,) = _run([script, *arguments], [environment], returncode)
    return told


def run_ranks(script: Path, *arguments: object, processes: int = 2, **environment: str) -> None:
    """Run a script in processes that find each other, as ``torchrun`` starts them.

    Args:
        script: The script.
        *arguments: Given to each as text.
        processes: How many.
        **environment: Further variables.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **environment,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "tests",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    _run([script, *arguments], ranks, 0)


def _run(argv: Sequence[object], environments: Sequence[Mapping[str, str]], returncode: int) -> list[tuple[str, str]]:
    ours = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "CUDA_VISIBLE_DEVICES": "",
    }
    (requests,) = _requests
    with tempfile.TemporaryDirectory(prefix="interpretune-script-") as name:
        jobs = [
            Job([*map(str, argv)], {**ours, **own}, Path(name, f"{i}.out"), Path(name, f"{i}.err"))
            for i, own in enumerate(environments)
        ]
        requests.send(jobs)
        codes = requests.recv()
        told = [(job.out.read_text(), job.err.read_text()) for job in jobs]
    assert codes == [returncode] * len(codes), (codes, *(err[-3000:] for _, err in told))
    return told


def _serve(requests: Connection) -> None:
    """Fork for every job, until nobody can ask any more."""
    while True:
        try:
            jobs = requests.recv()
        except (EOFError, KeyboardInterrupt):
            os._exit(0)
        children = [_start(job) for job in jobs]
        requests.send([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])


def _start(job: Job) -> int:
    child = os.fork()
    if not child:
        os._exit(_run_here(job))
    return child


def _run_here(job: Job) -> int:
    """Run a script as an interpreter of its own would."""
    signal.alarm(LIMIT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, file in ((1, job.out), (2, job.err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(stream, "w"), write_through=True) for stream in (1, 2))
    os.environ.clear()
    os.environ.update(job.environment)
    os.chdir(ROOT)
    warnings.resetwarnings()
    torch.set_num_threads(1)
    sys.argv = list(job.argv)
    try:
        runpy.run_path(job.argv[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(end.code)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - the process ends here
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As in the scripts: sums depend on the number of threads in the last digit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
