"""Asks for an argument that the specification lacks."""

import interpretune as it


class ExtraArgument:
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl
    def it_forward(self, module, batch, temperature):
        return None


adapter = ExtraArgument()
