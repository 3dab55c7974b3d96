"""An analysis in a process of its own, which kills itself before a batch: FOLDER BATCH, where 0 is no batch."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from interpretune.analysis import AnalysisRunner
from tests.analysis.sessions import make_session
from tests.analysis.tiny_latents import RandomDictionary

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    folder, killed_before = Path(sys.argv[1]), int(sys.argv[2])
    session = make_session(folder / "session")
    session.module.latent_models = [RandomDictionary("blocks.0.hook_resid_post", seed=1)]
    move, numbers = session.module.batch_to_device, itertools.count(1)

    def move_or_die(batch: Any) -> Any:
        if next(numbers) == killed_before:
            os.kill(os.getpid(), signal.SIGKILL)
        return move(batch)

    session.module.batch_to_device = move_or_die
    AnalysisRunner(**session, root=folder / "stores").run({"ablation": "ablation", "clean": "clean_no_sae"})
