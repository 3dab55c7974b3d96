"""Runs an analysis over a split of the session's data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console

from interpretune.activations.finite import rows_named
from interpretune.analysis.analysis_run import AnalysisRun
from interpretune.analysis.batch import AnalysisBatch
from interpretune.analysis.cache import AnalysisCache
from interpretune.analysis.identity import count_examples
from interpretune.analysis.modes import AnalysisCfg
from interpretune.analysis.open_analyses import OpenAnalyses
from interpretune.analysis.steps import loss_and_logit_diffs, run_with_ctx
from interpretune.config.checked import check_argument
from interpretune.errors import ConfigurationError
from interpretune.system.progress import progress_bar
from interpretune.system.torch_state import eval_mode

if TYPE_CHECKING:
    from interpretune.session.datamodule import ITDataModule
    from interpretune.session.module import ITModule

ANALYSIS_STEP = "analysis_test_step"


def analysis_step(module: ITModule, batch: Any, batch_idx: int, analysis_cfg: AnalysisCfg) -> None:
    """One step of any mode: labels to answer tokens, run, loss and differences, save."""
    label_ids, labels = module.labels_to_ids(batch.pop("labels"))
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

    A module with an ``analysis_test_step`` of its own is asked to run it; any other gets ``analysis_step``.

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
    cache = analysis_cfg.analysis_cache
    cache.answers = cache.answers or tuple(owner.it_cfg.generative_step_cfg.answers)
    loader = datamodule.test_dataloader()
    total = len(loader) if limit_batches < 0 else min(limit_batches, len(loader))
    with OpenAnalyses(owner) as opened:
        analysis = AnalysisRun.of(analysis_cfg, owner.latent_models, has_step=hasattr(owner, ANALYSIS_STEP))
        opened.open(analysis, lambda: cache.store)
        with eval_mode(owner), progress_bar(console, shown=console is not None) as progress:
            task, seen = progress.add_task(analysis.name, total=total), 0
            for batch_idx, batch in zip(range(total), loader, strict=False):
                rows = range(seen, seen := seen + count_examples(batch))
                with rows_named(rows, f"the split (batch {batch_idx})"):
                    run_analysis_step(owner, owner.batch_to_device(batch), batch_idx, analysis_cfg)
                owner.global_step += 1
                progress.advance(task)
    return cache


def run_analysis_step(module: ITModule, batch: Any, batch_idx: int, analysis_cfg: AnalysisCfg) -> None:
    """Analyse one batch with the module's ``analysis_test_step``, or with ``analysis_step`` where it has none."""
    if hasattr(module, ANALYSIS_STEP):
        module.run_step(ANALYSIS_STEP, batch, batch_idx, analysis_cfg=analysis_cfg)
        return
    module.hook.it_run_step(
        module=module,
        step_name=ANALYSIS_STEP,
        step=lambda: analysis_step(module, batch, batch_idx, analysis_cfg),
    )
