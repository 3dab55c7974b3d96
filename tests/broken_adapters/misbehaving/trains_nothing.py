"""A framework that runs training steps and takes no optimizer step."""

import interpretune as it
from interpretune.training.evaluation import evaluate


class TrainsNothing:
    declaration = it.AdapterDeclaration(name="acme", level="framework", contract="1.0")

    @it.hookimpl
    def it_run_loop(self, module, datamodule, loop, loop_cfg):
        if loop != "fit":
            return evaluate(module, datamodule, loop, loop_cfg)
        steps = 0
        for _ in range(loop_cfg.max_epochs):
            for index, batch in enumerate(datamodule.train_dataloader()):
                module.run_step("training_step", module.batch_to_device(batch), index)
                steps += 1
        return it.LoopResult(global_step=steps)


adapter = TrainsNothing()
