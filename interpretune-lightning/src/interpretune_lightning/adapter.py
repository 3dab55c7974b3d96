"""The Lightning adapter: the module as a LightningModule, the data module as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from interpretune import (
    AdapterDeclaration,
    AnalysisError,
    ClassContribution,
    ITDataModule,
    ITModule,
    LoopConfig,
    LoopResult,
    hookimpl,
)
from interpretune.analysis import AnalysisRun
from interpretune_lightning.analysis_callback import merges_analysis
from interpretune_lightning.config import ITLightningConfig
from interpretune_lightning.datamodule import ITLightningDataModule, LightningDataModuleEntry
from interpretune_lightning.module import ITLightningModule, LightningModuleEntry
from interpretune_lightning.trainer import run_loop


class LightningAdapter:
    """Makes sessions that Lightning's Trainer runs."""

    declaration = AdapterDeclaration(name="lightning", level="framework", contract="1.0")

    @hookimpl
    def it_contribute_classes(self) -> ClassContribution:
        """Lightning's classes, behind the user's, and the entries for the trainer's calls before them."""
        return ClassContribution(
            adapter="lightning",
            module_entry=(LightningModuleEntry,),
            module=(ITLightningModule,),
            datamodule_entry=(LightningDataModuleEntry,),
            datamodule=(ITLightningDataModule,),
            module_cfg=(ITLightningConfig,),
            module_key="model",
        )

    @hookimpl
    def it_run_loop(self, module: ITModule, datamodule: ITDataModule, loop: str, loop_cfg: LoopConfig) -> LoopResult:
        """Hand over to a Trainer."""
        return run_loop(module, datamodule, loop, loop_cfg)

    @hookimpl(wrapper=True)
    def it_run_analysis(
        self, module: ITModule, analysis: AnalysisRun
    ) -> Generator[None, Mapping[str, Any], Mapping[str, Any]]:
        """With several processes, each sees its share of the batches: see that somebody joins the results.

        Raises:
            AnalysisError: Nobody does, or they would be shared a second time.
        """
        trainer = getattr(module, "_trainer", None)
        if trainer is not None and trainer.world_size > 1 and not merges_analysis(trainer, analysis):
            raise AnalysisError(
                f"The analysis {analysis.name} runs in {trainer.world_size} processes, each of which would keep "
                "the results of its own share of the batches. Give AnalysisCallback(analysis_cfg) to the Trainer, "
                "which joins them, or analyse in one process."
            )
        if trainer is not None and trainer.world_size > 1 and analysis.folder and trainer.state.stage is not None:
            raise AnalysisError(
                f"The analysis {analysis.name} is run into a store while the trainer runs a loop in "
                f"{trainer.world_size} processes, in which each process sees its share of the batches only. Run it "
                "after trainer.test and its kin have returned; the processes then share the batches of the store."
            )
        return (yield)


adapter = LightningAdapter()
