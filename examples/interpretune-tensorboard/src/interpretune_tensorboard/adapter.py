"""The TensorBoard adapter: what an analysis or a loop has found is written when it has ended, as a run of its own."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Mapping
from typing import Any

from torch import Tensor

from interpretune import AdapterDeclaration, ClassContribution, LoopResult, hookimpl
from interpretune.analysis import AnalysisRun
from interpretune_tensorboard.config import TensorBoardConfig
from interpretune_tensorboard.event_files import make_log_folder, write_run
from interpretune_tensorboard.summaries import write_analysis, write_logged
from interpretune_tensorboard.tracked_module import Logged, TrackedModule


class TensorBoardAdapter:
    """Writes when something has ended, so that a run that fails leaves nothing behind."""

    declaration = AdapterDeclaration(name="tensorboard", level="extension", contract="1.0")

    @hookimpl
    def it_contribute_classes(self) -> ClassContribution:
        """The fields of the configuration, and what the module of a session remembers."""
        return ClassContribution(adapter="tensorboard", module=(TrackedModule,), module_cfg=(TensorBoardConfig,))

    @hookimpl
    def it_setup_module(self) -> None:
        """Import TensorBoard, also where nothing is written: keys of stores differ once it has been imported."""
        import torch.utils.tensorboard  # noqa: F401

    @hookimpl
    def it_open_analysis(self, module: TrackedModule, analysis: AnalysisRun) -> None:
        """Begin to collect what its steps log; a log folder that cannot be made ends the run here, before it costs."""
        cfg: Any = module.it_cfg
        if cfg.tensorboard_dir is not None:
            make_log_folder(cfg.tensorboard_dir)
            module.tensorboard_open[_key(analysis)] = Logged(epoch_means=False)

    @hookimpl
    def it_close_analysis(self, module: TrackedModule, analysis: AnalysisRun) -> None:
        """Write the run, unless it failed, or other processes still write its store: the last of them writes the run.

        Raises:
            OutputError: The log folder cannot be written.
        """
        logged = module.tensorboard_open.pop(_key(analysis), None)
        store = analysis.store
        shared = analysis.folder is not None and store is not None and not store.complete
        if logged is not None and analysis.error is None and not shared:
            write_run(module, analysis.name, lambda writer: write_analysis(writer, module, analysis, logged))

    @hookimpl
    def it_log(self, module: TrackedModule, metrics: Mapping[str, Tensor | float], options: Mapping[str, Any]) -> None:
        """Collect what steps log for the analyses that are open, and means of epochs for a loop."""
        is_mean = bool(options.get("epoch_mean"))
        for logged in list(module.tensorboard_open.values()):
            if logged.epoch_means == is_mean:
                logged.add(metrics)

    @hookimpl(wrapper=True)
    def it_run_loop(self, module: TrackedModule, loop: str) -> Generator[None, LoopResult, LoopResult]:
        """Write the means of a loop's epochs when it has ended.

        Raises:
            OutputError: The log folder cannot be written.
        """
        cfg: Any = module.it_cfg
        if cfg.tensorboard_dir is None:
            return (yield)
        make_log_folder(cfg.tensorboard_dir)
        key, logged = ("loop", loop), Logged(epoch_means=True)
        module.tensorboard_open[key] = logged
        try:
            result = yield
        finally:
            del module.tensorboard_open[key]
        if logged.values:
            write_run(module, loop, lambda writer: write_logged(writer, logged))
        return result


def _key(analysis: AnalysisRun) -> Hashable:
    """What tells an analysis from others that are open: configurations of one mode share its name."""
    return analysis.name, id(analysis.cfg), analysis.folder


adapter = TensorBoardAdapter()
