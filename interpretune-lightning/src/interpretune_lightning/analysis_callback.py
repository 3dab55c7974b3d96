"""Analyses from ``Trainer.test``."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer as LightningTrainer

from interpretune import AnalysisError
from interpretune.analysis import AnalysisCfg, AnalysisEngine, AnalysisRun
from interpretune_lightning.sharing import WholeBatchSampler


class AnalysisCallback(Callback):
    """Runs analyses on the batches of ``trainer.test``.

    The results are those of ``interpretune.analysis.run_analysis``. With several processes each analyses its share of
    the batches, and afterwards every process holds the results of all, in the order of a single process.

    Args:
        *analysis_cfgs: The analyses; each fills its own ``analysis_cache``.
    """

    def __init__(self, *analysis_cfgs: AnalysisCfg) -> None:
        self.analysis_cfgs = analysis_cfgs
        self._numbers: list[int] = []
        self._engine: AnalysisEngine | None = None

    def on_test_start(self, trainer: LightningTrainer, pl_module: Any) -> None:
        """Open the analyses.

        Raises:
            AnalysisError: A cache holds results already, or batches cannot be shared among processes.
        """
        self._numbers = []
        for cfg in self.analysis_cfgs:
            if cfg.analysis_cache.batches:
                raise AnalysisError(
                    f"The analysis_cache of the analysis {cfg.mode} holds {len(cfg.analysis_cache.batches)} batches "
                    "already. Give each AnalysisCfg a new AnalysisCache()."
                )
        self._sampler(trainer)
        self._engine = AnalysisEngine.in_memory(pl_module, *self.analysis_cfgs)
        self._engine.open()

    def on_test_batch_start(
        self, trainer: LightningTrainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Analyse a batch before the test step sees it."""
        sampler = self._sampler(trainer)
        number = batch_idx if sampler is None else sampler.batch_number(batch_idx)
        if sampler is not None and sampler.is_repeated(batch_idx):
            return
        self._numbers.append(number)
        assert self._engine is not None, "tests have a start"
        self._engine.analyse(number, batch)

    def on_test_end(self, trainer: LightningTrainer, pl_module: Any) -> None:
        """Join the results of all processes and close the analyses."""
        if self._sampler(trainer) is not None:
            for cfg in self.analysis_cfgs:
                own = list(zip(self._numbers, cfg.analysis_cache.batches, strict=True))
                gathered: list[Any] = [None] * trainer.world_size
                torch.distributed.all_gather_object(gathered, own)
                in_order = sorted((pair for share in gathered for pair in share), key=lambda pair: pair[0])
                cfg.analysis_cache.batches = [batch for _, batch in in_order]
        self._close(None)

    def on_exception(self, trainer: LightningTrainer, pl_module: Any, exception: BaseException) -> None:
        """Close the analyses, with what ended them."""
        self._close(exception)

    def _close(self, error: BaseException | None) -> None:
        if self._engine is not None:
            self._engine.close(error)

    def _sampler(self, trainer: LightningTrainer) -> WholeBatchSampler | None:
        """How batches are shared among processes; None for one process."""
        if trainer.world_size == 1:
            return None
        sampler = getattr(trainer.test_dataloaders, "sampler", None)
        if not isinstance(sampler, WholeBatchSampler):
            raise AnalysisError(
                f"With {trainer.world_size} processes the analyses need one test loader that reads its rows in order, "
                f"so that whole batches can be shared; found the sampler {type(sampler).__name__}. Give the session's "
                "data module to trainer.test(**session), with a test_dataloader that does not shuffle."
            )
        return sampler


def merges_analysis(trainer: LightningTrainer, analysis: AnalysisRun) -> bool:
    """Whether the results of all processes are joined: by one of the trainer's callbacks, or in a folder."""
    callbacks = (item for item in trainer.callbacks if isinstance(item, AnalysisCallback))  # type: ignore[attr-defined]
    merged = any(analysis.cfg is cfg for callback in callbacks for cfg in callback.analysis_cfgs)
    return merged or analysis.folder is not None
