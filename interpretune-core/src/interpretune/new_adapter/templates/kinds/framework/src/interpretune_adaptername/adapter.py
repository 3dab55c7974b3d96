"""The adapter: hands training over to a trainer; core evaluates.

Where to go on: ``trainer.py`` is the place of the framework that shall train. A framework that wants modules to derive
from a class of its own adds it with ``it_contribute_classes``; one that calls the module under another name than
``module`` says so there (``module_key``).
"""

from __future__ import annotations

from interpretune import AdapterDeclaration, ITDataModule, ITModule, LoopConfig, LoopResult, hookimpl

from interpretune_adaptername.trainer import train


class AdapterNameAdapter:
    """Stands at the bottom of the stack, just above core."""

    # literal arguments: installed adapters are listed without being imported
    declaration = AdapterDeclaration(name="adapter_name", level="framework", contract="CORE_CONTRACT")

    @hookimpl
    def it_run_loop(
        self, module: ITModule, datamodule: ITDataModule, loop: str, loop_cfg: LoopConfig
    ) -> LoopResult | None:
        """``fit`` is this trainer's; None leaves ``validate``, ``test`` and ``predict`` to core."""
        return train(module, datamodule, loop_cfg) if loop == "fit" else None


adapter = AdapterNameAdapter()
