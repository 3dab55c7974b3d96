"""A framework that weighs the last, smaller batch as it weighs the others."""

import interpretune as it
from interpretune.loops.evaluate import evaluate
from interpretune.loops.fit import FitLoop


class AveragesBatchesAlike:
    declaration = it.AdapterDeclaration(name="zoo", level="framework", contract="1.0")

    @it.hookimpl(wrapper=True)
    def it_log(self, options):
        options["batch_size"] = 1
        return (yield)

    @it.hookimpl
    def it_run_loop(self, module, datamodule, loop, loop_cfg):
        if loop == "fit":
            return FitLoop(module, datamodule, loop_cfg).run()
        return evaluate(module, datamodule, loop, loop_cfg)


adapter = AveragesBatchesAlike()
