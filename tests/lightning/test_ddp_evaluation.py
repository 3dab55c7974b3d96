"""Validation, test and prediction in several processes give the numbers of one: each row counts once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.lightning.ddp_evaluation import SIZES, numbers
from tests.other_process import one_thread, run_ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    """What one process finds; it also writes the models and prepares the rows."""
    with one_thread():
        return {f"{rows}/{size}": numbers(folder, rows, size, 1) for rows, size in SIZES}


def test_every_row_counts_once(folder: Path, alone: dict[str, Any]) -> None:
    processes = 2
    script = Path(__file__).with_name("ddp_evaluation.py")
    run_ranks(script, folder, processes, processes=processes, INTERPRETUNE_CACHE=str(folder / "interpretune-cache"))
    for rank in range(processes):
        found = json.loads((folder / f"found-{processes}-{rank}.json").read_text())
        assert found.keys() == alone.keys()
        for case, expected in alone.items():
            assert found[case].keys() == expected.keys(), case
            for name, value in expected.items():
                if name == "predictions":
                    assert [len(batch) for batch in found[case][name]] == [len(batch) for batch in value], case
                    flat = [[x for batch in part for row in batch for x in row] for part in (found[case][name], value)]
                    assert flat[0] == pytest.approx(flat[1], abs=1e-5), case
                else:
                    assert found[case][name] == pytest.approx(value, rel=1e-6, abs=1e-9), (case, name, rank)


def test_one_process_counts_as_by_hand(alone: dict[str, Any]) -> None:
    for case, found in alone.items():
        rows = int(case.split("/")[0])
        assert found["test_rows"] == found["val_rows"] == rows == len(found["lengths"])
        assert found["test_label"] == pytest.approx((rows // 2) / rows)
        assert found["test_tokens"] == sum(found["lengths"])
        assert found["test_mean_length"] == pytest.approx(sum(found["lengths"]) / rows)
        assert round(found["test_accuracy"] * rows, 4) in range(rows + 1)
