"""The list of faults fits to the sources; whether tests find the faults, ``make mutants`` says."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from tests.mutants.faults import Fault, StaleFaultError, put_in, read_faults, stale

FAULT = Fault("store", "one is two", old="x = 1", new="x = 2", tests=())


def test_every_fault_stands_in_the_sources_once_and_compiles():
    assert stale(read_faults()) == []


def test_there_are_enough_faults_and_each_is_said_once():
    faults = read_faults()
    assert len({str(fault) for fault in faults}) == len(faults) >= 100
    assert sum(fault.area in ("analysis", "operations", "replay") for fault in faults) >= 50
    assert all(fault.tests for fault in faults)


def test_a_fault_is_put_into_the_one_file_that_has_its_text():
    sources = {Path("a.py"): "x = 0", Path("b/c.py"): "x = 1\ny = 1"}
    assert put_in(FAULT, sources) == (Path("b/c.py"), "x = 2\ny = 1")


def test_the_end_of_a_path_tells_two_files_with_one_text_apart():
    sources = {Path("a/c.py"): "x = 1", Path("b/c.py"): "x = 1"}
    assert put_in(evolve(FAULT, file="b/c.py"), sources) == (Path("b/c.py"), "x = 2")


@pytest.mark.parametrize(
    ("text", "fault", "message"),
    [
        ("x = 3", FAULT, "stands 0 times"),
        ("x = 1\nx = 1", FAULT, "stands 2 times"),
        ("x = 1", evolve(FAULT, new="x ="), "is no Python"),
    ],
    ids=["gone", "twice", "syntax"],
)
def test_a_fault_that_does_not_fit_is_refused(text: str, fault: Fault, message: str):
    with pytest.raises(StaleFaultError, match=message):
        put_in(fault, {Path("a.py"): text})


def test_tests_that_are_gone_are_named():
    assert "there is no tests/nowhere" in "\n".join(stale([evolve(FAULT, tests=("tests/nowhere",))]))
