"""Two processes under DDP train what one process with twice the batch trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lightning.ddp_training import WHAT, alone, make, trained
from tests.other_process import run_ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The processes' folder, after both trainings."""
    folder = tmp_path_factory.mktemp("ddp")
    make(folder, WHAT[0])  # writes the model and the rows
    script = Path(__file__).with_name("ddp_training.py")
    run_ranks(script, folder, INTERPRETUNE_CACHE=str(folder / "interpretune-cache"))
    return folder


def found(folder: Path, what: str) -> dict[str, Any]:
    """What both processes ended with."""
    first, second = (torch.load(folder / f"{what}-rank{rank}.pt", weights_only=True) for rank in (0, 1))
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    assert first["steps"] == second["steps"] == 6
    return first


def assert_trained_alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], before: Any) -> None:
    """The same weights, each of which moved far more than they differ."""
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert all((found[name] - before[name]).abs().max() > 5e-5 for name in found)


@pytest.mark.parametrize(
    ("what", "in_turn"),
    [("model", True), ("model", False), ("latents", True)],  # losses of latents are means over tokens, not rows
    ids=["accumulation", "twice-the-batch", "latents"],
)
def test_two_processes_train_like_one(folder, what, in_turn):
    before, expected = trained(make(folder, what)), trained(alone(folder, what, in_turn=in_turn))
    assert_trained_alike(found(folder, what)["weights"], expected, before)
