"""Puts the model into evaluation mode for a batch and into train mode after it."""

import interpretune as it


class TrainsBetweenBatches:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl(wrapper=True)
    def it_run_analysis(self, module, analysis):
        if analysis.batch_idx == 0:
            module.model.eval()
        results = yield
        module.model.train()
        return results


adapter = TrainsBetweenBatches()
