"""The Lightning adapter: the module as a LightningModule, the data module as a LightningDataModule."""

from __future__ import annotations

from interpretune import (
    AdapterDeclaration,
    ClassContribution,
    ITDataModule,
    ITModule,
    LoopConfig,
    LoopResult,
    hookimpl,
)
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


adapter = LightningAdapter()
