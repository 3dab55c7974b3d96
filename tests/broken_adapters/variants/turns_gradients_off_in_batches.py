"""Turns gradients off around each batch and forgets how they were."""

import torch

import interpretune as it


class TurnsGradientsOffInBatches:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl(wrapper=True)
    def it_run_analysis(self, module, analysis):
        results = yield
        torch.set_grad_enabled(False)
        return results


adapter = TurnsGradientsOffInBatches()
