"""The SAELens adapter: SAEs and transcoders as latent models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interpretune import (
    AdapterDeclaration,
    ClassContribution,
    ITDataModule,
    ITModule,
    LatentRequest,
    ReportSection,
    hookimpl,
)
from interpretune_saelens.config import SAELensConfig, SAELensTrainConfig
from interpretune_saelens.latent_model import SAELatentModel
from interpretune_saelens.loading import find_saes, load_latent_model
from interpretune_saelens.training import train_latent_models


class SAELensAdapter:
    """Loads SAEs with the module; trains those that a session asks to train when its data is ready."""

    declaration = AdapterDeclaration(name="sae_lens", level="latents", default_model="transformer_lens", contract="1.0")

    @hookimpl
    def it_contribute_classes(self) -> ClassContribution:
        """The field ``sae_cfgs`` of the module's configuration."""
        return ClassContribution(adapter="sae_lens", module_cfg=(SAELensConfig,))

    @hookimpl
    def it_load_latent_models(self, module: ITModule) -> Sequence[SAELatentModel]:
        """Load every SAE that exists already."""
        return [load_latent_model(cfg, module.device) for cfg in _cfgs(module) if not _to_train(cfg)]

    @hookimpl
    def it_setup_module(self, module: ITModule, datamodule: ITDataModule) -> None:
        """Train the SAEs that are to be trained, or load them from the cache."""
        wanted = [cfg for cfg in _cfgs(module) if _to_train(cfg)]
        if wanted:
            loaded = [item for item in module.latent_models if not getattr(item, "training_report", None)]
            module.latent_models = [*loaded, *train_latent_models(module, datamodule, wanted)]

    @hookimpl
    def it_configure_latents(self, request: LatentRequest) -> Mapping[str, Any]:
        """SAEs of a release or a folder, by layers or ids; without a release, SAEs to be trained at the layers."""
        if request.release is None:
            return {
                "sae_cfgs": [
                    SAELensTrainConfig(
                        hook_name=name,
                        seed=request.seed,
                        training_steps=max(1, int(SAELensTrainConfig.training_steps * request.scale)),
                    )
                    for name in request.hook_points
                ]
            }
        return {"sae_cfgs": find_saes(request.release, request.layers, request.ids)}

    @hookimpl
    def it_report_session(self, module: ITModule) -> Sequence[ReportSection]:
        """How the session's SAEs were trained."""
        reports = [item.training_report for item in module.latent_models if isinstance(item, SAELatentModel)]
        rows = [report for report in reports if report]
        return [ReportSection(adapter="sae_lens", title="SAE training", rows=rows)] if rows else []


def _cfgs(module: ITModule) -> Sequence[Any]:
    cfgs: Sequence[Any] = getattr(module.it_cfg, "sae_cfgs", ())
    return cfgs


def _to_train(cfg: Any) -> bool:
    return isinstance(cfg, SAELensTrainConfig)


adapter = SAELensAdapter()
