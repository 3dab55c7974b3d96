"""Turns gradients off when an analysis begins, to save memory, and never on again."""

import torch

import interpretune as it


class TurnsGradientsOffForAnalyses:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_open_analysis(self, module, analysis):
        torch.set_grad_enabled(False)


adapter = TurnsGradientsOffForAnalyses()
