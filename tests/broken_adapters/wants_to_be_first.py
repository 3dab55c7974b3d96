"""Pushes itself to the front."""

import interpretune as it


class WantsToBeFirst:
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")

    @it.hookimpl(tryfirst=True)
    def it_forward(self, module, batch):
        return None


adapter = WantsToBeFirst()
