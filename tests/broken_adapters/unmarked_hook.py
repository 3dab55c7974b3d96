"""Forgets the marker."""

import interpretune as it


class UnmarkedHook:
    declaration = it.AdapterDeclaration(name="zoo", level="model")

    def it_forward(self, module, batch):
        return None


adapter = UnmarkedHook()
