"""Runs an analysis over a split of the session's data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console

from interpretune.analysis.batch import AnalysisBatch
from interpretune.analysis.cache import AnalysisCache
from interpretune.analysis.engine import AnalysisEngine
from interpretune.analysis.identity import count_examples
from interpretune.analysis.modes import AnalysisCfg
from interpretune.analysis.steps import loss_and_logit_diffs, run_with_ctx
from interpretune.config.checked import check_argument
from interpretune.errors import ConfigurationError
from interpretune.session.answers import take_labels

if TYPE_CHECKING:
    from interpretune.session.datamodule import ITDataModule
    from interpretune.session.module import ITModule


def analysis_step(module: ITModule, batch: Any, batch_idx: int, analysis_cfg: AnalysisCfg) -> None:
    """A step to call yourself, in a trainer's test for one: the calls that a step of your own consists of."""
    label_ids, labels = take_labels(module, batch)
    analysis_batch = AnalysisBatch(labels=label_ids, orig_labels=labels)
    run_with_ctx(module, analysis_batch, analysis_cfg, batch, batch_idx)
    loss_and_logit_diffs(module, analysis_batch, analysis_cfg, batch, batch_idx)
    analysis_cfg.analysis_cache.save(analysis_batch, batch, tokenizer=module.require_datamodule().tokenizer)


def run_analysis(
    module: ITModule | None = None,
    datamodule: ITDataModule | None = None,
    analysis_cfg: AnalysisCfg | None = None,
    limit_batches: int = -1,
    console: Console | None = None,
    *,
    model: ITModule | None = None,
) -> AnalysisCache:
    """Run an analysis over the test batches of a session: ``run_analysis(**session, analysis_cfg=AnalysisCfg(...))``.

    A module with an ``analysis_test_step`` of its own is asked to run it.

    Args:
        module: The session's module.
        datamodule: The session's data module.
        analysis_cfg: The mode and its inputs.
        limit_batches: Stop after so many batches; negative: use all.
        console: Where progress is shown; None: nowhere.
        model: The module, under framework adapters that call it so.

    Returns:
        ``analysis_cfg.analysis_cache``.

    Raises:
        ConfigurationError: The module, the data module or the configuration is missing.
    """
    owner = module if module is not None else model
    if owner is None or datamodule is None or analysis_cfg is None:
        raise ConfigurationError(
            "run_analysis needs a module, a data module and what to do: call it as "
            "run_analysis(**session, analysis_cfg=AnalysisCfg(mode=...))."
        )
    check_argument("run_analysis: analysis_cfg", analysis_cfg, AnalysisCfg)
    check_argument("run_analysis: limit_batches", limit_batches, int)
    loader = datamodule.test_dataloader()
    total = len(loader) if limit_batches < 0 else min(limit_batches, len(loader))
    with AnalysisEngine.in_memory(owner, analysis_cfg) as engine:
        engine.open()
        engine.run(_counted(owner, loader, total), total, console)
    return analysis_cfg.analysis_cache


def _counted(module: ITModule, loader: Iterable[Any], total: int) -> Iterator[tuple[int, range, Any]]:
    """Batches with their number and the positions of their rows; the module counts those that are done."""
    seen = 0
    for number, batch in zip(range(total), loader, strict=False):
        yield number, range(seen, seen := seen + count_examples(batch)), batch
        module.global_step += 1
