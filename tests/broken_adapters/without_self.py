"""Forgets ``self``, so that the first argument is silently the adapter."""

import interpretune as it


class WithoutSelf:
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_forward(module, batch):
        return None


adapter = WithoutSelf()
