"""Marks a method that resembles no hook."""

import interpretune as it


class HookOfNoName:
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def zzz(self):
        return None


adapter = HookOfNoName()
