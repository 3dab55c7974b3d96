"""Turns accuracies into percent where it finds them."""

import torch

import interpretune as it


class ChangesLoggedMetrics:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_log(self, module, metrics, options):
        for name, value in metrics.items():
            if name.endswith("accuracy") and isinstance(value, torch.Tensor):
                value.mul_(100)


adapter = ChangesLoggedMetrics()
