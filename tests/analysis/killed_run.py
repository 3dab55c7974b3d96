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
from interpretune.analysis.stored_run import StoredRun
from tests.sessions import make_session
from tests.tiny_latents import RandomDictionary

MODES = {"ablation": "ablation", "clean": "clean_no_sae"}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    folder, killed_before = Path(sys.argv[1]), int(sys.argv[2])
    session = make_session(folder / "session")
    session.module.latent_models = [RandomDictionary("blocks.0.hook_resid_post", seed=1)]
    write, numbers = StoredRun.write, itertools.count()

    def write_or_die(*args: Any) -> None:
        if next(numbers) == len(MODES) * (killed_before - 1):
            os.kill(os.getpid(), signal.SIGKILL)
        write(*args)

    StoredRun.write = write_or_die  # type: ignore[method-assign]
    AnalysisRunner(**session, root=folder / "stores").run(MODES)
