"""A framework whose loops leave out the last batch."""

from dataclasses import replace

import interpretune as it
from interpretune.training.evaluation import evaluate
from interpretune.training.fit_loop import FitLoop


class SkipsTheLastBatch:
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")

    @it.hookimpl
    def it_run_loop(self, module, datamodule, loop, loop_cfg):
        limits = {f"limit_{name}_batches": 2 for name in ("val", "test", "predict")}
        if loop == "fit":
            return FitLoop(module, datamodule, loop_cfg).run()
        return evaluate(module, datamodule, loop, replace(loop_cfg, **limits))


adapter = SkipsTheLastBatch()
