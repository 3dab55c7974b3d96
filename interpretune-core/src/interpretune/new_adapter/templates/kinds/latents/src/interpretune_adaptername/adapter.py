"""The adapter: loads dictionaries as latent models; analyses of every kind then work with them.

Where to go on: ``dictionary.py`` is the place for another encoder (TopK, gated, ...), ``loading.py`` for the format in
which your dictionaries are published. ``interpretune.LatentTrainingModule`` trains them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interpretune import AdapterDeclaration, ClassContribution, ITModule, LatentRequest, ReportSection, hookimpl

from interpretune_adaptername.config import DictionariesConfig, SavedDictionary
from interpretune_adaptername.dictionary import Dictionary
from interpretune_adaptername.loading import find_saved, load_dictionary, width_at


class AdapterNameAdapter:
    """Stands above the adapter that loads the model, whichever that is."""

    # literal arguments: installed adapters are listed without being imported
    declaration = AdapterDeclaration(name="adapter_name", level="latents", contract="CORE_CONTRACT")

    @hookimpl
    def it_contribute_classes(self) -> ClassContribution:
        """The field ``adapter_name_cfgs`` of ``ITConfig``."""
        return ClassContribution(adapter="adapter_name", module_cfg=(DictionariesConfig,))

    @hookimpl
    def it_load_latent_models(self, module: ITModule) -> Sequence[Dictionary]:
        """Called once, when the model is loaded; core checks hook points and widths, and moves to the device."""
        cfg: Any = module.it_cfg
        dictionaries = [
            load_dictionary(item.path)
            if isinstance(item, SavedDictionary)
            else Dictionary(item.hook_point, width_at(module, item.hook_point), item.d_sae, seed=item.seed)
            for item in cfg.adapter_name_cfgs
        ]
        return [dictionary.eval() for dictionary in dictionaries]

    @hookimpl
    def it_configure_latents(self, request: LatentRequest) -> Mapping[str, Any] | None:
        """Answer ``ITSessionConfig.latents``, which names no adapter; None leaves the answer to another."""
        if request.release is None:
            return None
        saved = find_saved(Path(request.release), request.layers, request.ids)
        return {"adapter_name_cfgs": [SavedDictionary(path=folder) for folder in saved]} if saved else None

    @hookimpl
    def it_report_session(self, module: ITModule) -> Sequence[ReportSection]:
        """A table for reports, of this adapter's dictionaries alone."""
        own = [item for item in module.latent_models if isinstance(item, Dictionary)]
        rows = [{"dictionary": item.name, "width": item.d_in, "latents": item.d_sae} for item in own]
        return [ReportSection(adapter="adapter_name", title="Dictionaries", rows=rows)] if rows else []


adapter = AdapterNameAdapter()
