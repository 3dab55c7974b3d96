"""Turns gradients off for an analysis and on afterwards, wherever they were off before."""

import torch

import interpretune as it


class TurnsGradientsOnAgain:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_open_analysis(self, module, analysis):
        torch.set_grad_enabled(False)

    @it.hookimpl
    def it_close_analysis(self, module, analysis):
        torch.set_grad_enabled(True)


adapter = TurnsGradientsOnAgain()
