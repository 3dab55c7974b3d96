"""Registers a hook on all modules of the process."""

from torch.nn.modules.module import register_module_forward_hook

import interpretune as it
from tests.broken_adapters.misbehaving.sound import SoundAdapter


class HooksEveryModule(SoundAdapter):
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_load_model(self, module):
        register_module_forward_hook(lambda *given: None)
        return super().it_load_model(module)


adapter = HooksEveryModule()
