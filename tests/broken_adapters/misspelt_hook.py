"""Misspells a hook."""

import interpretune as it


class MisspeltHook:
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_foward(self, module, batch):
        return None


adapter = MisspeltHook()
