"""Forgets the marker."""

import interpretune as it


class UnmarkedHook:
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    def it_forward(self, module, batch):
        return None


adapter = UnmarkedHook()
