"""Run as a script by the tests, as Lightning's users start several processes: analyses of each rank's share, merged."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from lightning.pytorch import Trainer

import interpretune as it
from interpretune.analysis import AnalysisCfg, AnalysisMode, AnalysisRunner
from interpretune_lightning import AnalysisCallback
from tests.sessions import make_session
from tests.tiny_latents import RandomDictionary


def analyse(folder: Path, devices: int, n_rows: int) -> tuple[Trainer, it.ITSession, list[AnalysisCfg]]:
    """All four analyses from ``Trainer.test``."""
    session = make_session(
        folder,
        "gpt2",
        adapters=("lightning",),
        init=False,
        module_cls=it.ClassificationModule,
        n_rows=n_rows,
        latent_models=[
            RandomDictionary("blocks.0.hook_resid_post", seed=1),
            RandomDictionary("blocks.2.hook_mlp_out", seed=2),
        ],
    )
    cfgs = [AnalysisCfg(mode=mode) for mode in AnalysisMode]
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        callbacks=[AnalysisCallback(*cfgs)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=folder,
    )
    trainer.test(**session, verbose=False)
    return trainer, session, cfgs


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    folder, devices, n_rows = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    trainer, session, cfgs = analyse(folder, devices, n_rows)
    AnalysisRunner(**session, root=folder / "stores").run({"clean": "clean_w_sae"})
    for cfg in cfgs:
        cfg.analysis_cache.write(folder / f"rank{trainer.global_rank}" / str(cfg.mode))
