"""Writers that are killed at random moments; ``make soak-store`` does many more."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.soak_store import Soak


def test_killed_runs_end_as_untouched_ones(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # shown where this fails
    soak = Soak(tmp_path, n_batches=40, seed=seed)
    soak.run(kills=6)
    assert soak.found["kills"] == 6
    assert soak.found["runs"] >= 1
