"""Puts faults into copies of the sources, one at a time, and looks whether tests find them.

The working tree is not changed. Each fault has a process of its own, forked from one that has imported large libraries
and nothing of interpretune.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path

from tests.mutants.faults import ROOT, Fault, put_in, read_faults, read_sources, source_folders, stale

LIBRARIES = (
    *("torch", "transformers", "datasets", "pyarrow.parquet", "hypothesis", "pytest"),
    *("transformer_lens", "sae_lens", "lightning.pytorch"),
)
"""Imported once, before anything is forked."""
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1"}
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
LIMIT = 900
"""Seconds after which tests that do not end have found the fault: something hangs."""
SAID = 10
"""Added to the exit status of pytest, so that it is not taken for that of a process that failed before."""
CAUGHT, SURVIVED, UNKNOWN = "caught", "survived", "no verdict"
OUTCOMES = {SAID: SURVIVED, SAID + 1: CAUGHT, SAID + 2: CAUGHT}
"""By exit status of a process: tests pass, one fails, or one cannot be imported; nothing follows of any other."""


class Run:
    """Tests that run with one fault, or with none.

    Attributes:
        fault: None: the sources are as they are.
        tests: Files or folders.
        folder: Where sources are copied to.
        outcome: One of ``CAUGHT``, ``SURVIVED``, ``UNKNOWN``, when they have run.
        seconds: How long they ran.
    """

    def __init__(self, fault: Fault | None, tests: Sequence[str], folder: Path) -> None:
        self.fault, self.tests, self.folder = fault, tests, folder
        self.outcome, self.seconds = UNKNOWN, 0.0

    def __str__(self) -> str:
        return f"{self.outcome:<10} {self.seconds:>4.0f} s   {self.fault or 'no fault'}"

    @property
    def said(self) -> str:
        """The end of what pytest printed."""
        return "\n".join((self.folder / "log.txt").read_text(encoding="utf-8").splitlines()[-15:])

    def start(self) -> None:
        """Copy the sources, put the fault in, and begin."""
        ignore = shutil.ignore_patterns("__pycache__")
        for folder in source_folders():
            shutil.copytree(folder, self.folder / folder.relative_to(ROOT), ignore=ignore)
        if self.fault is not None:
            path, text = put_in(self.fault, read_sources(self.folder))
            path.write_text(text, encoding="utf-8")
        self.process = get_context("fork").Process(target=run_tests, args=(self.folder, self.tests))
        self.started = time.monotonic()
        self.process.start()

    def has_ended(self) -> bool:
        """Whether the tests are through; then the outcome is noted, and the copy of the sources goes."""
        self.seconds = time.monotonic() - self.started
        hangs = self.seconds > LIMIT
        if self.process.is_alive() and not hangs:
            return False
        if hangs:
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        self.outcome = CAUGHT if hangs else OUTCOMES.get(self.process.exitcode or 0, UNKNOWN)
        for folder in source_folders(self.folder):
            shutil.rmtree(folder)
        return True


def run_tests(folder: Path, tests: Sequence[str]) -> None:
    """In a forked process: import interpretune from a folder, run tests, and exit with what pytest says of them."""
    os.setpgid(0, 0)
    with (folder / "log.txt").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sources = [str(item) for item in source_folders(folder)]
    sys.path[:0] = sources
    os.environ["PYTHONPATH"] = os.pathsep.join([*sources, *filter(None, [os.environ.get("PYTHONPATH")])])
    import pytest

    status = pytest.main([*OPTIONS, *tests])
    sys.stdout.flush()
    origin = getattr(sys.modules.get("interpretune"), "__file__", "")
    os._exit(SAID + int(status) if origin.startswith(str(folder)) else 1)


def run_all(runs: Sequence[Run], jobs: int = 1) -> None:
    """Run so many at a time, and say how each ends."""
    waiting, running = list(runs), list[Run]()
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(waiting.pop(0))
            running[-1].start()
        wait([run.process.sentinel for run in running], timeout=5)
        for run in [run for run in running if run.has_ended()]:
            running.remove(run)
            print(f"{len(runs) - len(waiting) - len(running):>3}/{len(runs)}  {run}", flush=True)
            if run.outcome == UNKNOWN or (run.fault is None and run.outcome != SURVIVED):
                print(run.said)


def main() -> int:
    """0 where all faults were caught."""
    parser = argparse.ArgumentParser(prog="make mutants ARGS=...", description=__doc__)
    parser.add_argument("-k", default="", metavar="TEXT", help="only faults with this text in 'list: description'")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="run these tests for every fault")
    parser.add_argument("--trust", action="store_true", help="do not run the tests without a fault before")
    given = parser.parse_args()
    faults = [fault for fault in read_faults() if given.k in str(fault)]
    if wrong := stale(faults):
        print("\n".join(wrong))
        return 1
    with tempfile.TemporaryDirectory(prefix="interpretune-mutants-") as name:
        folder = Path(name)
        os.environ |= {**ENVIRONMENT, "HF_DATASETS_CACHE": str(folder / "datasets")}
        sys.dont_write_bytecode = True
        for library in LIBRARIES:
            importlib.import_module(library)
        runs = [Run(fault, given.tests or fault.tests, folder / f"{n}") for n, fault in enumerate(faults)]
        if not given.trust:
            clean = Run(None, sorted({path for run in runs for path in run.tests}), folder / "clean")
            run_all([clean])
            if clean.outcome != SURVIVED:
                print("Tests fail without a fault, so that nothing can be said of faults.")
                return 1
        run_all(runs, given.jobs)
    missed = [run for run in runs if run.outcome != CAUGHT]
    seconds = sum(run.seconds for run in runs)
    print(f"\n{len(runs) - len(missed)} of {len(runs)} faults caught, {seconds:.0f} s", *missed, sep="\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
