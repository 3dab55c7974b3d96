"""A framework that weighs the last, smaller batch as it weighs the others."""

import interpretune as it
from interpretune.training.evaluation import evaluate
from interpretune.training.fit_loop import FitLoop


class WeighsAlike:
    def log_dict(self, dictionary, *args, **kwargs):
        super().log_dict(dictionary, *args, **{**kwargs, "batch_size": 1})


class AveragesBatchesAlike:
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")

    @it.hookimpl
    def it_contribute_classes(self):
        return it.ClassContribution(adapter="acme", module=(WeighsAlike,))

    @it.hookimpl
    def it_run_loop(self, module, datamodule, loop, loop_cfg):
        if loop == "fit":
            return FitLoop(module, datamodule, loop_cfg).run()
        return evaluate(module, datamodule, loop, loop_cfg)


adapter = AveragesBatchesAlike()
