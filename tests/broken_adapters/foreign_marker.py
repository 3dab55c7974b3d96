"""Marks its hooks for another project."""

import pluggy

import interpretune as it

hookimpl = pluggy.HookimplMarker("menagerie")


class ForeignMarker:
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @hookimpl
    def it_forward(self, module, batch):
        return None


adapter = ForeignMarker()
