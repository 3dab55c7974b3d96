"""Seeds the generators of the process."""

import torch

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class SeedsTheProcess(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_load_model(self, module):
        torch.manual_seed(0)
        return super().it_load_model(module)


adapter = SeedsTheProcess()
